"""What the site has beside docs/*.md: the reference, and pages of the root.

The reference has one page for each public module of the library, found in the
tree, so that a new module needs no line here.
"""

import ast
import pathlib
import re
from collections.abc import Iterator

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "diffusion_jax"
# Places in the site of files that are elsewhere in the repository.
COPIES = {
  "contributing.md": "CONTRIBUTING.md",
  "changelog.md": "CHANGELOG.md",
  "colab.ipynb": "experiments/colab.ipynb",
}
LINKS = {**COPIES, "reference/index.md": "diffusion_jax/__init__.py"}


def modules() -> Iterator[tuple[str, pathlib.Path]]:
  """Public modules and their files, each package before what is in it."""
  paths = (ROOT / PACKAGE).rglob("*.py")
  named = {path.relative_to(ROOT).with_suffix("").parts: path for path in paths}
  for parts, path in sorted(named.items()):
    if parts[-1] == "__init__":
      yield ".".join(parts[:-1]), path
    elif not any(part.startswith("_") for part in parts):
      yield ".".join(parts), path


def page(module: str, path: pathlib.Path) -> str:
  """Where a module's page is: a package's is the index of its folder."""
  place = "/".join(["reference", *module.split(".")[1:]])
  return f"{place}/index.md" if path.stem == "__init__" else f"{place}.md"


def text(module: str, path: pathlib.Path) -> str:
  """A module's page; a package's lists its short names and its modules."""
  lines = [f"::: {module}", ""]
  if path.stem == "__init__":
    lines[1:] = ["    options:", "      members: false", ""]
    names = "\n".join(f"- {name}" for name in short_names(path))
    table = "\n".join(contents(module))
    lines += ["## Short names", "", names, "", "## Modules", "", table, ""]
  return "\n".join(lines)


def short_names(path: pathlib.Path) -> Iterator[str]:
  """Links to the functions and classes that a package re-exports."""
  package = ".".join(path.parent.relative_to(ROOT).parts)
  short = package.replace(PACKAGE, "dj")
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.ImportFrom) and node.module != package:
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        yield f"[`{short}.{alias.asname or alias.name}`][{full}]"


def contents(package: str) -> Iterator[str]:
  """A table of the modules in a package, with their first lines."""
  yield from ("| module | |", "| --- | --- |")
  for module, path in modules():
    if module.rpartition(".")[0] == package:
      doc = ast.get_docstring(ast.parse(path.read_text())) or ""
      first = doc.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
      yield f"| [`{module.rpartition('.')[2]}`][{module}] | {first} |"


def on_config(config):
  """Puts the modules under Reference, those of a package in a section."""
  (_, root), *rest = modules()
  tree = [page(PACKAGE, root)]
  sections = {PACKAGE: tree}
  for module, path in rest:
    parent, _, name = module.rpartition(".")
    entry = page(module, path)
    if path.stem == "__init__":
      sections[module] = [entry]
      entry = sections[module]
    sections[parent].append({name: entry})
  for entry in config.nav:
    if isinstance(entry, dict) and "Reference" in entry:
      entry["Reference"] = tree
  return config


def on_files(files, config):
  """Adds the pages that are not in docs/."""
  generated = {page(*module): text(*module) for module in modules()}
  for place, path in COPIES.items():
    generated[place] = (ROOT / path).read_text()
  for place, content in generated.items():
    files.append(File.generated(config, place, content=content))
  return files


def on_page_markdown(markdown, page, **_):
  """Links out of docs/, which work in the repository, work in the site too."""
  if page.is_homepage:
    page.meta["hide"] = ["navigation"]
  up = "../" * page.file.src_uri.count("/")
  for place, path in LINKS.items():
    link = rf"\]\(\.\./{up}{re.escape(path)}"
    markdown = re.sub(link, f"]({up}{place}", markdown)
  return markdown
