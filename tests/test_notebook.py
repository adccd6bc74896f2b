"""The notebook: short cells, names that exist, and a run from top to bottom."""

import ast
import json
import pathlib

import pytest

import diffusion_jax as dj

PATH = pathlib.Path(__file__).parents[1] / "experiments" / "colab.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CELLS = [
  "".join(line for line in cell["source"] if not line.startswith("%"))
  for cell in NOTEBOOK["cells"]
  if cell["cell_type"] == "code"
]
SECTIONS = 15


def test_it_has_no_outputs():
  assert NOTEBOOK["nbformat"] == 4
  for cell in NOTEBOOK["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
  assert PATH.stat().st_size < 150_000


def test_its_sections_are_numbered():
  titles = [
    line
    for cell in NOTEBOOK["cells"]
    for line in cell["source"]
    if cell["cell_type"] == "markdown" and line.startswith("## ")
  ]
  numbers = [int(title.split()[1].rstrip(".")) for title in titles]
  assert numbers == list(range(1, SECTIONS + 1))


def code_lines(source):
  """Lines of code: no blanks, comments, imports, documentation."""
  tree, other = ast.parse(source), set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      other |= set(range(node.lineno, node.end_lineno + 1))
    documented = isinstance(node, ast.FunctionDef | ast.ClassDef)
    if documented and ast.get_docstring(node):
      first = node.body[0]
      other |= set(range(first.lineno, first.end_lineno + 1))
  return [
    line
    for number, line in enumerate(source.splitlines(), 1)
    if line.strip() and line.strip()[0] != "#" and number not in other
  ]


@pytest.mark.parametrize("number", range(len(CELLS)))
def test_a_cell_is_short_and_python(number):
  lines = code_lines(CELLS[number])
  assert len(lines) <= 10, "\n".join(lines)


def test_its_names_of_the_library_exist():
  used = set()
  for source in CELLS:
    for node in ast.walk(ast.parse(source)):
      names = []
      while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
      if names and isinstance(node, ast.Name) and node.id == "dj":
        used.add(tuple(reversed(names)))
  assert len(used) > 40
  for names in used:
    found = dj
    for name in names:
      assert hasattr(found, name), f"dj.{'.'.join(names)}"
      found = getattr(found, name)


def test_it_is_small_only_when_asked():
  assert sum(source.count("SMALL = False") for source in CELLS) == 1


@pytest.mark.slow
def test_it_runs_from_top_to_bottom():
  nbclient = pytest.importorskip("nbclient")
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(PATH, as_version=4)
  for cell in notebook.cells:
    cell.source = cell.source.replace("SMALL = False", "SMALL = True")
  # An error in a cell is raised here, with the cell.
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(PATH.parent)}},
  ).execute()
  shown = [
    output.get("data", {})
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  ]
  assert sum("image/png" in data for data in shown) > 20
