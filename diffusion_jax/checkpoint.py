"""Checkpoints of a training run, with Orbax.

A checkpoint is the whole ``TrainState`` and nothing else: keys are derived from
the seed and the step, and so is the position in the data. It appears whole or
not at all, with checksums of its files. When it is deleted, a small snapshot of
its averages remains, see ``averages``.
"""

import contextlib
import dataclasses
import errno
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import checksums, concrete
from diffusion_jax.averages import Snapshot, snapshot
from diffusion_jax.damage import (
  UNREADABLE,
  Damaged as Damaged,
  as_damage,
  reason,
)
from diffusion_jax.deprecated import moved
from diffusion_jax.extras import needed_for
from diffusion_jax.state import TrainState

with needed_for("diffusion_jax.checkpoint"):
  import orbax.checkpoint as ocp

Saved = TypeVar("Saved", TrainState, Snapshot)
# Bytes in which Orbax describes an array: 1,400 as measured, and some to spare.
DESCRIBED = 2048


class Checkpoints:
  """The checkpoints of one run: saved in the background, the last few kept.

  Use as a context manager; leaving it waits for a save under way.

  Args:
    directory: Their folder; created if needed.
    keep: How many of the newest to keep; None keeps all.
    averages: Folder for a small snapshot of the averages of each checkpoint
      that is deleted, see ``averages.snapshot``; None keeps none.
    read_only: Change nothing, for readers of a run that may be training.
      Otherwise incomplete files of a killed run are removed, so there must be
      no other writer.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    keep: int | None = 3,
    averages: pathlib.Path | None = None,
    read_only: bool = False,
  ):
    self._read_only = read_only
    self._directory = pathlib.Path(directory).absolute()
    if not read_only and jax.process_index() == 0:
      for rest in self._directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(rest)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=not read_only,
        save_root_metadata=not read_only,
        enable_async_checkpointing=True,
      ),
      item_handlers=_Checksummed(),
    )
    if averages is None or (read_only and not averages.is_dir()):
      self._averages = None
    else:
      self._averages = Checkpoints(averages, keep=None, read_only=read_only)

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    try:
      with self._saving():
        self._manager.close()
        if self._averages is not None:
          self._averages._manager.close()
    except OSError:
      if error is None:  # else the first error is the one to tell
        raise

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """The steps of all checkpoints, the oldest first."""
    return sorted(self._manager.all_steps())

  def averages(self, like: TrainState) -> dict[int, Any]:
    """The averages of all checkpoints so far, also of deleted ones.

    Args:
      like: The state of one of them.

    Returns:
      Averages with a width by step and name, float16; None if they are not
      kept.
    """
    if self._averages is None:
      return {}
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      snapshot(like.step, like.ema),
    )
    kept = self._averages
    return {step: kept.restore(shapes, step).ema for step in kept.steps()}

  def forget_after(self, step: int) -> None:
    """Removes everything of later steps, for a run that resumes at ``step``."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def save(self, state: Saved) -> None:
    """Saves the state under its step; a step saved before is not changed.

    Raises:
      OSError: If this save, or the one before in the background, failed.
        Earlier checkpoints are intact.
    """
    step = int(state.step)
    if step == self.latest_step():
      return
    _check_room(self._directory, state)
    with self._saving():
      self._manager.save(step, args=_Save(_fields(state)))
    if self._averages is not None and isinstance(state, TrainState):
      self._averages.save(snapshot(state.step, state.ema))

  def wait(self) -> None:
    """Returns once everything is saved.

    Raises:
      OSError: As ``save``.
    """
    with self._saving():
      self._manager.wait_until_finished()
      if self._averages is not None:
        self._averages._manager.wait_until_finished()

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Turns Orbax's errors into one that says that nothing was saved."""
    try:
      yield
    except UNREADABLE as error:
      raise OSError(
        f"a checkpoint could not be saved in {self._directory}, those before "
        f"it are whole: {reason(error)}"
      ) from error

  def restore(
    self,
    like: Saved,
    step: int | None = None,
    *,
    tell: Callable[[str], object] | None = None,
  ) -> Saved:
    """Reads a checkpoint.

    Args:
      like: A state of ``jax.ShapeDtypeStruct``s, as ``jax.eval_shape`` makes
        it, with the shardings to restore to.
      step: The step; by default the newest that is not damaged.
      tell: Called with a line for each damaged one that is skipped. With
        None a damaged one is an error.

    Returns:
      The state.

    Raises:
      ValueError: If there is none of this step, none can be read, it holds
        other arrays than ``like``, or JAX is tracing; nothing is renamed.
      OSError: If the system does not let a checkpoint be read, which does not
        mean that it is damaged.
    """
    concrete.check_outside("the restoring of a checkpoint")
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps:
      raise ValueError(f"no checkpoint in {self._directory}; train first")
    if step is not None:
      if step not in steps:
        raise ValueError(
          f"no checkpoint of step {step} in {self._directory}; there are "
          f"{', '.join(map(str, sorted(steps)))}"
        )
      steps = [step]
    damaged = []
    for candidate in steps:
      try:
        state = self._restore(candidate, like)
      except Damaged as error:
        if tell is None:
          place = f"checkpoint {candidate} in {self._directory}"
          raise Damaged(f"{place} is damaged: {error}") from error
        tell(f"checkpoint {candidate} is passed over: {error}")
        damaged.append(candidate)
      else:
        self._set_aside(damaged)
        if self._averages is not None and not self._read_only:
          self._averages.forget_after(int(state.step))
        return state
    raise ValueError(
      f"every checkpoint in {self._directory} is damaged: put back a "
      "copy, or train anew in another directory"
    )

  def _restore(self, step: int, like: Saved) -> Saved:
    self._verify(step)
    with as_damage():
      have = _shapes(self._manager.item_metadata(step))
    _check_same(_shapes(like), have)
    with as_damage():
      saved = self._manager.restore(step, args=_Restore(_fields(like)))
    # Orbax returns the type it is given: the fields of a state, or a snapshot.
    if isinstance(like, TrainState):
      saved = TrainState(**cast(dict[str, Any], saved))
    return cast(Saved, saved)

  def _verify(self, step: int) -> None:
    """Compares the files with their checksums, on one process for all.

    Raises:
      Damaged: If they differ from what was written.
      OSError: If the system does not let them be read.
    """
    problem: Exception | None = None
    if jax.process_index() == 0:
      try:
        folder = self._directory / str(step) / "default"
        if difference := checksums.difference(folder):
          problem = Damaged(difference)
      except OSError as error:
        problem = error
    unread, damaged = multihost_utils.broadcast_one_to_all(
      np.array([isinstance(problem, OSError), isinstance(problem, Damaged)])
    )
    if problem is not None:
      raise problem
    if damaged:
      raise Damaged("the first process found it damaged")
    if unread:
      raise OSError(f"the first process cannot read checkpoint {step}")

  def _set_aside(self, steps: list[int]) -> None:
    """Renames these checkpoints, so that new ones can take their place."""
    if self._read_only or not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        aside = self._directory / f"damaged-{step}"
        number = 0
        while aside.exists():
          number += 1
          aside = self._directory / f"damaged-{step}-{number}"
        (self._directory / str(step)).rename(aside)
    multihost_utils.sync_global_devices("damaged checkpoints set aside")
    self._manager.reload()


class _Checksummed(ocp.StandardCheckpointHandler):
  """Writes checksums beside the arrays before a checkpoint is made visible."""

  def finalize(self, directory) -> None:
    super().finalize(directory)
    # Of three or more processes each may get here; what they write is equal.
    if jax.process_index() == 0:
      checksums.write(pathlib.Path(directory))


@ocp.args.register_with_handler(_Checksummed, for_save=True)
class _Save(ocp.args.StandardSave):
  """Orbax finds a handler by the type of its arguments."""


@ocp.args.register_with_handler(_Checksummed, for_restore=True)
class _Restore(ocp.args.StandardRestore):
  """As ``_Save``."""


def _fields(state: Any) -> Any:
  """The saved fields of a state: checkpoints older than teachers have none."""
  if not isinstance(state, TrainState):
    return state
  fields = {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
  }
  if state.teacher is None:
    del fields["teacher"]
  return fields


def _check_room(directory, state: Any) -> None:
  """Checks that the disk has room for a state.

  Raises:
    OSError: If not.
  """
  needed = sum(x.nbytes + DESCRIBED for x in jax.tree.leaves(state))
  free = shutil.disk_usage(directory).free
  if free < needed:
    raise OSError(
      errno.ENOSPC,
      f"No space left for a checkpoint: it takes {needed / 1e6:.1f} MB, "
      f"{free / 1e6:.1f} MB are free; those before it are whole",
      str(directory),
    )


def _check_same(want: dict, have: dict) -> None:
  """Raises for the first array that is missing, extra or of another shape."""
  for name in sorted(want.keys() | have.keys()):
    if want.get(name) != have.get(name):
      raise ValueError(
        f"the checkpoint does not fit the configuration: {name} is "
        f"{have.get(name, 'missing')} in the checkpoint and "
        f"{want.get(name, 'absent')} in the configured network"
      )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }


__getattr__ = moved(__name__, {"CHECKSUMS": "diffusion_jax.checksums:NAME"})
