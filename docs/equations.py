"""Docstrings as Markdown: equations and examples are shown as they stand."""

import re

import griffe

# Two spaces after a blank line: an equation.
EQUATION = re.compile(r"(?<=\n\n)(?:  .*\n?)+")
# What a Python prompt begins, to the next blank line: an example.
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)


def as_markdown(text: str) -> str:
  """Indents equations as Markdown wants it, and fences examples."""
  text = EQUATION.sub(lambda m: re.sub("^  ", "    ", m[0], flags=re.M), text)
  return EXAMPLE.sub(lambda m: f"```pycon\n{m[0]}\n```", text)


class Docstrings(griffe.Extension):
  """Changes docstrings before their sections are parsed."""

  def on_object(self, *, obj: griffe.Object, **_) -> None:
    """One docstring."""
    if obj.docstring:
      obj.docstring.value = as_markdown(obj.docstring.value)
