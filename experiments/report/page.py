"""The page: parts of a report, by the macros of page.html."""

import datetime
import pathlib
import re
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

FOLDER = pathlib.Path(__file__).parent
STYLE = (FOLDER / "style.css").read_text()


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: Its heading, and its name in addresses.
    kind: The macro of page.html that shows it.
    content: The macro's arguments.
  """

  title: str
  kind: str
  content: dict[str, Any]

  @property
  def id(self) -> str:
    """Its name in addresses."""
    return re.sub("[^a-z]+", "-", self.title.lower()).strip("-")


def missing(title: str, words: str) -> Section:
  """A sentence in the place of what is not there."""
  return Section(title, "missing", {"words": words})


def render(
  name: str,
  facts: dict[str, str],
  sections: list[Section],
  *,
  version: str = "",
  warning: str | None = None,
) -> str:
  """The whole file.

  Args:
    name: Of the run.
    facts: What is said of it first, "Progress" among it.
    sections: Its parts.
    version: Of the library.
    warning: A sentence above all parts.

  Returns:
    HTML, in which what is text is escaped, whatever it holds.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  now = datetime.datetime.now().astimezone()
  return (
    environment.get_template("page.html")
    .render(
      name=name,
      facts=facts,
      sections=sections,
      style=Markup(STYLE),
      now=f"{now:%d %B %Y at %H:%M %Z}",
      version=version,
      warning=warning,
    )
    .strip()
  )
