"""experiments.tools.figures, run as a user runs it."""

import functools

import numpy as np
import pytest
from commands import TINY, assert_one_error, command
from PIL import Image

from experiments import train
from experiments.tools import figures


def test_a_figure_is_the_same_file_every_time(tmp_path, capsys):
  for name in "ab":
    command(figures, "--only=forward", f"--out={tmp_path / name}")
  assert "forward.png: A digit with the same noise" in capsys.readouterr().out
  a, b = ((tmp_path / n / "forward.png").read_bytes() for n in "ab")
  assert a == b


def test_the_roll_goes_there_and_back(monkeypatch):
  fewer = functools.partial(figures.dj.mixtures.swiss_roll, 100)
  monkeypatch.setattr(figures.dj.mixtures, "swiss_roll", fewer)
  there, back = np.reshape(figures.roll().axes, (2, -1))
  points = [
    [np.asarray(axes.collections[0].get_offsets()) for axes in row]
    for row in (there, back)
  ]
  radius = [[np.hypot(*x.T) for x in row] for row in points]
  for row in radius:
    # Data lie inside the roll's reach, noise does not.
    assert row[0].max() < 2.3 < row[-1].max()
  # Where a point of the noise goes is no matter of how far out it is.
  assert abs(np.corrcoef(radius[1][0], radius[1][-1])[0, 1]) < 5 / 600**0.5


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--only=rol", "'rol' is not one of schedules, forward, roll"),
    ("--only=samples", "is drawn by a run; pass its --workdir"),
    ("--workdir=nowhere", "no run directory nowhere"),
    (f"--out={__file__}", "is a file; name another place"),
  ],
)
def test_what_cannot_be_made_is_one_line(flag, message, capsys):
  with pytest.raises(SystemExit) as stop:
    command(figures, flag)
  assert_one_error(stop, capsys, message)


def test_a_run_that_edits_has_a_figure_of_it(zoo, few_numbers):
  run = zoo.original("few")
  assert figures.wanted(None, run) == ["samples", "denoising", "editing"]
  assert figures.wanted("editing", run) == ["editing"]


def test_a_run_that_edits_nothing_has_no_such_figure(zoo, few_numbers):
  run = zoo.original("upsampler")
  assert figures.wanted(None, run) == ["samples", "denoising"]
  with pytest.raises(ValueError, match="enlarges pictures; it does not edit"):
    figures.wanted("editing", run)


def test_a_run_that_cannot_draw_a_figure_is_refused(zoo, few_numbers):
  run = zoo.original("few")
  with pytest.raises(ValueError, match="=roll needs no run; leave out --work"):
    figures.wanted("roll", run)
  with pytest.raises(ValueError, match="needs a run with label_dropout, unlik"):
    figures.wanted("guided", run)


@pytest.mark.slow
@pytest.mark.parametrize(
  "flags, names",
  [
    ((), ["denoising", "editing", "samples"]),
    (
      ("--config.model.num_classes=10", "--config.label_dropout=0.1"),
      ["guided"],
    ),
  ],
)
def test_a_runs_figures_are_pictures(flags, names, tmp_path):
  workdir, out = tmp_path / "run", tmp_path / "out"
  command(train, *TINY, f"--workdir={workdir}", "--config.num_steps=4", *flags)
  command(figures, f"--workdir={workdir}", f"--out={out}")
  assert sorted(path.stem for path in out.iterdir()) == names
  for path in out.iterdir():
    with Image.open(path) as picture:
      assert np.asarray(picture.convert("L")).std() > 0
