"""The page: the sections of a report, by the macros of page.html."""

import datetime
import pathlib
import re
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

FOLDER = pathlib.Path(__file__).parent
STYLE = (FOLDER / "style.css").read_text()


class Section(NamedTuple):
  """A section of the page.

  Attributes:
    title: Its heading, and its anchor.
    kind: The macro of page.html that shows it.
    content: The macro's arguments.
  """

  title: str
  kind: str
  content: dict[str, Any]

  @property
  def id(self) -> str:
    """Its anchor."""
    return re.sub("[^a-z]+", "-", self.title.lower()).strip("-")


def missing(title: str, words: str) -> Section:
  """A section with a sentence instead of missing content."""
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
    name: Name of the run.
    facts: The facts at the top, including "Progress".
    sections: The sections.
    version: Version of the library.
    warning: A sentence above all sections.

  Returns:
    HTML, with all text escaped.
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
