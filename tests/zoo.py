"""Trained runs for tests to look at, each made once in a whole session.

A test is given a copy of its own, so that it may change it. The processes of
pytest-xdist share the originals by a folder and a lock.
"""

import pathlib
import shutil

import filelock
import toy
from commands import BLIND, CLASSIFIER, TINY, UPSAMPLER, command

from experiments import train

EIGHT = "--config.num_steps=8"


def few_numbers(*flags):
  """Makes a run whose network has a few numbers, see toy.py."""

  def make(workdir):
    with toy.networks():
      command(train, *flags, EIGHT, f"--workdir={workdir}")

  return make


# Each of 8 steps, with checkpoints after 4 and 8.
RUNS = {
  "unet": lambda workdir: command(train, *BLIND, EIGHT, f"--workdir={workdir}"),
  "shown": few_numbers(*TINY),
  "few": few_numbers(*BLIND),
  "judge": few_numbers(*CLASSIFIER),
  # It is told the digit, or sometimes not.
  "conditional": few_numbers(
    *BLIND,
    "--config.model.num_classes=10",
    "--config.label_dropout=0.5",
    "--config.optim.lr=0.02",
    "--config.optim.warmup_steps=0",
    "--config.sampling.guidance=2.0",
  ),
  # A cascade: pictures of 4 x 4, and their enlargement to 8 x 8.
  "small": few_numbers(*BLIND, "--config.data.size=(4,)"),
  "upsampler": few_numbers(*UPSAMPLER),
}


class Zoo:
  """Makes runs and copies of them, in a folder of all processes."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    folder.mkdir(exist_ok=True)

  def original(self, name: str) -> pathlib.Path:
    """The run itself, which nobody may change."""
    workdir, made = (self._folder / part for part in (name, f"{name}.made"))
    with filelock.FileLock(self._folder / f"{name}.lock"):
      if not made.exists():
        shutil.rmtree(workdir, ignore_errors=True)
        RUNS[name](workdir)
        made.touch()
    return workdir

  def copy(self, name: str, to: pathlib.Path) -> pathlib.Path:
    """A copy of the run."""
    return shutil.copytree(self.original(name), to)

  @staticmethod
  def cut(workdir: pathlib.Path, *, step: int) -> pathlib.Path:
    """Makes of a run one that was killed before it saved a later step."""
    for folder in (workdir / "checkpoints").iterdir():
      if folder.name.isdigit() and int(folder.name) > step:
        shutil.rmtree(folder)
    return workdir
