"""The documents: their code runs, their links lead somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(page):
  return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def test_the_examples_for_contributors_pass_their_tests():
  names = {}
  for block in blocks(ROOT / "CONTRIBUTING.md"):
    assert len(block.splitlines()) < 40
    exec(block, names)
  tests = [name for name in names if name.startswith("test_")]
  assert len(tests) == 5
  for name in tests:
    names[name]()


@pytest.mark.slow
def test_the_readmes_example_runs():
  (block,) = blocks(ROOT / "README.md")
  names = {}
  exec(block, names)
  assert names["x"].shape == (4, 32, 32, 3)
  assert names["loss"].shape == ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)]+)\)", page.read_text())
  for link in links:
    if link.startswith("https://"):
      continue
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists(), link
    if heading:
      titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
      anchors = [
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in titles
      ]
      assert heading in anchors, link


def test_every_test_that_the_readme_names_is_there():
  named = re.findall(r"`(test_\w+\.py)`", (ROOT / "README.md").read_text())
  assert len(named) > 20
  for name in named:
    assert (ROOT / "tests" / name).is_file(), name


def test_every_configuration_that_is_named_is_there():
  for page in PAGES:
    for name in re.findall(r"configs/(\w+\.py)", page.read_text()):
      assert (ROOT / "experiments" / "configs" / name).is_file(), name
