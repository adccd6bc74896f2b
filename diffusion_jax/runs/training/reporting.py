"""The output of a run: a progress bar, logs, curves, images."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import tensorboardX
import tqdm

from diffusion_jax import plots
from diffusion_jax.runs import directory


class Log:
  """Progress, .jsonl files and TensorBoard; only the first process writes.

  metrics.jsonl has one row per logged step, previews.jsonl one per preview
  and set of parameters.

  Args:
    workdir: The run directory.
    first_step: The step from which the run resumes; later rows, of a part that
      was killed, are removed.
    num_steps: The last step.
    batch_size: Images per step.
    quiet: True on all processes but the first.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    quiet: bool,
  ):
    self._quiet = quiet
    self._batch_size = batch_size
    self._num_steps = num_steps
    self._last = (time.perf_counter(), first_step)
    if quiet:
      return
    self._files = {
      name: _reopen(workdir / f"{name}.jsonl", first_step)
      for name in ("metrics", "previews")
    }
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=first_step + 1
    )
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit="step",
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if self._quiet:
      return
    self._bar.close()
    # What a full disk has left unwritten fails again here.
    for opened in (*self._files.values(), self._board):
      with contextlib.suppress(*([OSError] if error else [])):
        opened.close()

  def metrics(self, step: int, values: dict[str, float]) -> None:
    """Logs the values of the steps since the last call."""
    now, (then, before) = time.perf_counter(), self._last
    self._last = (now, step)
    speed = (step - before) / max(now - then, 1e-9)
    row = {
      "step": step,
      "images": step * self._batch_size,
      **values,
      "steps_per_s": speed,
      "images_per_s": speed * self._batch_size,
    }
    if self._quiet:
      return
    _write(self._files["metrics"], row)
    for name, value in row.items():
      if name != "step":
        self._board.add_scalar(name, value, step)
    left = (self._num_steps - step) / speed
    if self._bar.disable:
      self.say(
        f"step {step}/{self._num_steps}  loss {values['loss']:.4f}  "
        f"{speed:.2f} steps/s  {row['images_per_s']:.0f} images/s  "
        f"{_clock(left)} left"
      )
    else:
      self._bar.set_postfix_str(
        f"loss {values['loss']:.4f}, {row['images_per_s']:.0f} images/s"
      )
      self._bar.update(step - self._bar.n)

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Excludes the time of what is done meanwhile from the speed."""
    began = time.perf_counter()
    try:
      yield
    finally:
      then, step = self._last
      self._last = (then + time.perf_counter() - began, step)

  def say(self, line: str) -> None:
    """Prints a line without breaking the progress bar."""
    if not self._quiet:
      tqdm.tqdm.write(line, file=sys.stdout)
      sys.stdout.flush()

  def picture(self, name: str, picture: np.ndarray, step: int) -> None:
    """Shows a picture in TensorBoard."""
    if not self._quiet:
      self._board.add_image(name, picture, step, dataformats="HWC")

  def preview(self, step: int, name: str, figures: dict[str, Any]) -> None:
    """Logs the figures of a preview; ``name`` is that of its parameters.

    Args:
      step: The step of the preview.
      name: "raw", or the average's.
      figures: Numbers, or lists of one number per channel.
    """
    if self._quiet:
      return
    _write(self._files["previews"], {"step": step, "of": name, **figures})
    for figure, value in figures.items():
      for k, number in enumerate(np.atleast_1d(value)):
        part = f"_{k}" if isinstance(value, list) else ""
        self._board.add_scalar(f"previews/{name}/{figure}{part}", number, step)


def _reopen(path: pathlib.Path, last_step: int) -> IO[str]:
  """Opens a .jsonl file to continue after this step."""
  rows = [
    row for row in directory.read_rows(path) if isinstance(row.get("step"), int)
  ]
  kept = [row for row in rows if row["step"] <= last_step]
  directory.replace(path, "".join(json.dumps(row) + "\n" for row in kept))
  return path.open("a")


def _write(file: IO[str], row: dict) -> None:
  file.write(json.dumps(row) + "\n")
  file.flush()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f"{hours}:{minutes:02}:{seconds:02}"
    if hours
    else (f"{minutes}:{seconds:02}")
  )


def plot_loss(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Draws the loss over the run, and by quarter of t."""
  rows = [
    row
    for row in directory.read_rows(workdir / "metrics.jsonl")
    if {"step", "loss"} <= row.keys()
  ]
  names = {
    "loss_q0": "first quarter of t (cleanest)", "loss_q1": "second",
    "loss_q2": "third", "loss_q3": "last", "loss": "all t",
  }  # fmt: skip
  # Blues from dark to light, distinct without colour vision too.
  shades = ("#08306b", "#2171b5", "#6baed6", "#b3cde3")
  styles: dict[str, dict[str, Any]] = {
    name: {"color": shade, "linestyle": "-"}
    for name, shade in zip(names.values(), shades, strict=False)
  }
  styles["all t"] = {"color": "#d95f02", "linestyle": "-", "linewidth": 2.5}
  lines: dict[str, Any] = {}
  for key, name in names.items():
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
      x, y = zip(*points, strict=True)
      lines[name] = (x, y)
  figure = plots.curves(
    lines or {"all t": ((), ())},
    xlabel="step",
    ylabel="loss",
    log="y",
    styles=styles,
    ends=True,
    title=workdir.name.replace("$", r"\$"),
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
