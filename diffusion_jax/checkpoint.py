"""Checkpoints of a training run, with Orbax.

Saved are the whole ``TrainState`` and nothing else: keys are derived from the
seed and the step, and so is the position in the data.
"""

import pathlib
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from diffusion_jax.state import TrainState


class Checkpoints:
  """The checkpoints of one run: saved in the background, the last few kept.

  Use as a context manager; leaving it waits for a save under way.

  Args:
    directory: Where they lie; made if need be.
    keep: How many of the newest to keep.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int = 3):
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True
      ),
      item_handlers=ocp.StandardCheckpointHandler(),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint; None where there is none."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Saves the state under its step; a step saved before stays as it is."""
    step = int(state.step)
    if step != self.latest_step():
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, like: Any, step: int | None = None) -> TrainState:
    """Reads a checkpoint.

    Args:
      like: A state of ``jax.ShapeDtypeStruct``s, as ``jax.eval_shape`` makes
        it, with the shardings to restore to.
      step: Which; by default the newest.

    Returns:
      The state.

    Raises:
      ValueError: If there is none, or it holds other arrays than ``like``.
    """
    step = self.latest_step() if step is None else step
    if step is None:
      raise ValueError(
        f"no checkpoint in {self._manager.directory}; train first"
      )
    saved = self._manager.item_metadata(step)
    _check_same(like, saved)
    state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
    return cast(TrainState, state)


def _check_same(like: Any, saved: Any) -> None:
  """Names the first array that is missing, extra or of another shape."""
  want, have = _shapes(like), _shapes(saved)
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
