"""The documents: their code runs, their links lead somewhere."""

import doctest
import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest

from experiments import cli
from experiments.cli import arguments, devices

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

EXAMPLES = sorted(
  path
  for folder in ("diffusion_jax", "experiments")
  for path in ROOT.glob(f"{folder}/**/*.py")
  if ">>> " in path.read_text()
)


def name(page):
  return str(page.relative_to(ROOT))


def parts(page):
  """The code of a page, in order: what it is written in, and the code."""
  return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S)


def blocks(page, language="python"):
  return [block for kind, block in parts(page) if kind == language]


def commands(block):
  """What a shell is asked to run of ours: a module and its flags."""
  for line in block.replace("\\\n", " ").splitlines():
    for part in re.split(r"&&|--command=\"|\"$", line):
      words = shlex.split(part, comments=True)
      if "-m" in words and "python" in words:
        module, *given = words[words.index("-m") + 1 :]
        yield module, [flag for flag in given if flag != "..."]


COMMANDS = sorted(
  {
    (module, *given)
    for page in PAGES
    for block in blocks(page, "sh")
    for module, given in commands(block)
    if module.startswith("experiments.")
  }
)


class Parsed(Exception):
  """A command line has been read, and nothing done."""


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


@pytest.mark.slow
def test_the_tutorial_ends_on_the_roll(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {}
  for block in blocks(ROOT / "docs" / "tutorial.md"):
    exec(block, names)
  drawn, data = (names["distance"](names[name]) for name in ("x", "fresh"))
  error = (data.var() / 600 + drawn.var() / 600) ** 0.5
  assert abs(drawn.mean() - data.mean()) < 5 * error
  assert {path.name for path in tmp_path.iterdir()} == {
    "forward.png",
    "paths.png",
  }


def roughness(x):
  """How neighbours differ, in standard deviations; of noise, sqrt(2)."""
  return np.diff(x.astype(float), axis=1).std() / x.std()


def follow(page, run, names, steps):
  """Runs a page's Python, but for what opens another run than this one.

  Of its commands those of this run; it trains for ``steps``, without previews.
  """
  length = ("num_steps", "optim.decay_steps")
  fewer = [f"--config.{key}={steps}" for key in length]
  for kind, block in parts(page):
    if kind == "python" and ("runs.open" not in block or run in block):
      exec(block, names)
    for module, given in commands(block) if kind == "sh" else ():
      if f"--workdir={run}" in given:
        if module.endswith("train"):
          given = [*given, *fewer, "--config.preview.num=0"]
        importlib.import_module(module).main([module, *given])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "steps"), [("signals", 400), ("volumes", 150), ("fields", 400)]
)
def test_arrays_are_like_the_data(name, steps, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {}
  follow(ROOT / "docs" / "any-rank.md", f"runs/{name}", names, steps)
  data, drawn = np.load(f"{name}.npy"), np.load(f"new-{name}.npy")
  assert drawn.dtype == data.dtype
  assert roughness(drawn) < (roughness(data) + 2**0.5) / 2
  assert abs(np.log(drawn.std() / data.std())) < 0.3
  if name == "fields":
    # 0.87 to 0.91 measured; 0.08 to 0.17 of the data, whatever their k.
    assert min(names["shares"]) > 0.6, names["shares"]
    assert pathlib.Path("fields.png").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_the_examples_of_docstrings_are_right(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  assert doctest.testmod(importlib.import_module(".".join(parts))).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_is_python(page):
  for block in blocks(page):
    compile(block, name(page), "exec")


@pytest.mark.parametrize("line", COMMANDS, ids=" ".join)
def test_commands_have_these_flags(line, monkeypatch, tmp_path):
  parse = cli.parse

  def stop(argv, values):
    parse([word for word in argv if word != "--help"], values)
    raise Parsed

  for module in (cli, arguments):
    monkeypatch.setattr(module, "parse", stop)
  monkeypatch.chdir(tmp_path)
  mine = blocks(ROOT / "docs" / "networks.md")[0]
  pathlib.Path("mine.py").write_text(mine)
  monkeypatch.setattr(devices, "start", lambda: None)
  module, *given = line
  if (ROOT / module.replace(".", "/")).is_dir():
    module += ".__main__"
  # With --help no source of weights is looked for before flags are read.
  with pytest.raises(Parsed):
    importlib.import_module(module).main([line[0], *given, "--help"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
  text = page.read_text()
  links = re.findall(r"\]\(([^)]+)\)", text)
  links += re.findall(r'src="([^"]+)"', text)
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
