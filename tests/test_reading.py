"""experiments.tools.reading, run as a user runs it."""

import re

import numpy as np
import pytest
from commands import assert_one_error, command

from diffusion_jax import data
from experiments.tools import reading


def test_made_pictures_are_read_as_training_reads(tmp_path, capsys):
  out = tmp_path / "made" / "cache"
  flags = ("--num=9", "--size=6", "--batch=4", "--batches=3", "--threads=1")
  flags = (*flags, f"--out={out}")
  command(reading, *flags)
  assert "images/s of 108 bytes" in capsys.readouterr().out
  written = data.load(out)
  assert len({one["image"].tobytes() for one in written}) == 9
  before = (out / "images.npy").stat().st_mtime_ns
  command(reading, *flags, "--cold", "--step_rate=0.001")
  assert (out / "images.npy").stat().st_mtime_ns == before
  last = capsys.readouterr().out.splitlines()[-1]
  assert re.search(r"as fast as the step's 0 images/s and keeps up", last)


def test_a_cost_is_of_one_picture(monkeypatch):
  class Clock:
    """A second for each look, and CPU and the disk at fixed rates."""

    ru_utime = ru_stime = ru_inblock = seconds = 0

    def look(self, _=None):
      self.seconds += 1
      self.ru_utime, self.ru_stime = 2 * self.seconds, self.seconds
      self.ru_inblock = 10 * self.seconds
      return self

  clock = Clock()
  monkeypatch.setattr(reading.resource, "getrusage", clock.look)
  monkeypatch.setattr(reading.time, "perf_counter", lambda: clock.seconds)
  made = reading.made(8, 4)
  np.testing.assert_allclose(
    reading.cost(made, 4, 5, 1), np.array([1, 3, 5120]) / 20
  )


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--out is missing"),
    ([f"--out={__file__}/a"], "is a file; name another place"),
    (
      ["--out=x", "--batches=7", "--num=9", "--size=6"],
      "--batches=7 must be at least 8: so many are read ahead",
    ),
    (
      ["--num=1000000000", "--size=1024", "--out=x"],
      "need 3145728.0 GB, .* has",
    ),
  ],
)
def test_what_cannot_be_measured_is_one_line(
  flags, message, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    command(reading, *flags)
  assert_one_error(stop, capsys, message)
