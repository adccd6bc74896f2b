"""What a network is conditioned on: one pytree, or None.

For the networks here it is a dictionary:

  y          classes, [B]
  low_res    small pictures to enlarge, [B, h, w, C]
  low_res_t  the steps to which these are noised, [B]
  augment    what was done to the picture, [B, 9], see ``augmentation``
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import process, samplers, upsampling
from diffusion_jax.prediction import Cond
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule

# Numbers that no step reaches, for keys of their own.
LABELS, LOW_RES, AUGMENT = 2**32 - 1, 2**32 - 2, 2**32 - 5


@dataclasses.dataclass(frozen=True)
class Conditions:
  """The one place where conditions are made.

  Attributes:
    schedule: Of the noise on small pictures.
    num_classes: How many classes there are; None conditions on none.
    label_dropout: Part of the labels that training hides behind
      ``num_classes``, one class more, for classifier-free guidance.
    low_res: Height and width of the pictures to enlarge; None enlarges none.
    noise: The largest step of noise on these; where it is above 0 the step is
      a condition, too.
  """

  schedule: Schedule
  num_classes: int | None = None
  label_dropout: float = 0.0
  low_res: tuple[int, int] | None = None
  noise: int = 0

  def draw(self, batch: Any, key: Key[Array, ""], step: Any) -> Cond:
    """The condition of a batch in training.

    Drawn for the whole batch, so that neither micro-batches nor devices
    change it.

    Args:
      batch: "image" and "label"; "augment", where pictures are augmented.
      key: The run's training key.
      step: Number of updates so far.

    Returns:
      The condition.
    """
    key_labels, key_small = (
      jax.random.fold_in(jax.random.fold_in(key, purpose), step)
      for purpose in (LABELS, LOW_RES)
    )
    cond = self.of(batch["image"], batch["label"])
    if "augment" in batch:
      cond = {**(cond or {}), "augment": batch["augment"]}
    if cond is None:
      return None
    if self.label_dropout:
      cond["y"] = drop_labels(
        key_labels, cond["y"], self.label_dropout, self.num_classes or 0
      )
    if self.noise:
      cond["low_res"], cond["low_res_t"] = upsampling.augment(
        key_small, self.schedule, cond["low_res"], self.noise
      )
    return cond

  def of(self, x0: Batch, y: Int[Array, " B"] | None) -> Cond:
    """The condition of clean images: nothing hidden or noised."""
    low_res = None
    if self.low_res is not None:
      low_res = upsampling.shrink(x0, self.low_res)
    return self.given(y, low_res)

  def given(
    self,
    y: Any,
    low_res: Float[Array, "B h w C"] | None,
  ) -> Cond:
    """A condition of classes and clean small pictures; None if empty."""
    cond: dict[str, Any] = {}
    if self.num_classes is not None:
      cond["y"] = y
    if low_res is not None:
      cond["low_res"] = low_res
      if self.noise:
        cond["low_res_t"] = jnp.zeros(len(low_res), jnp.int32)
    return cond or None

  def null(self, cond: Cond) -> Cond:
    """The condition without its class, as training hides it."""
    return without_class(self.num_classes or 0)(cond)


def noised(
  cond: Cond, schedule: Schedule, key: Key[Array, ""], s: int, images: Any
) -> Cond:
  """The condition with small pictures noised to step s, keyed by image."""
  low_res = cond["low_res"]
  eps = samplers.noise(
    jax.random.fold_in(key, LOW_RES), s, images, low_res.shape[1:]
  )
  at = jnp.full(len(low_res), s)
  noisy = process.q_sample(schedule, low_res, at, eps)
  return {**cond, "low_res": noisy, "low_res_t": at}


def drop_labels(
  key: Key[Array, ""],
  y: Int[Array, " B"],
  rate: float | Float[Array, ""],
  no_class: int,
) -> Int[Array, " B"]:
  """Replaces labels by ``no_class``, each with probability ``rate``.

  What training for ``guidance.classifier_free`` does (Ho and Salimans 2022,
  algorithm 1): one network learns both predictions.

  Args:
    key: For the draw.
    y: Labels.
    rate: 0.1 to 0.2 is usual.
    no_class: The label that stands for none, usually the number of classes.

  Returns:
    Labels.

  Raises:
    ValueError: If the rate is a number that is no probability.
  """
  if isinstance(rate, int | float) and not 0 <= rate <= 1:
    raise ValueError(f"{rate=} must be in [0, 1], the part that is hidden")
  return jnp.where(jax.random.bernoulli(key, rate, y.shape), no_class, y)


def without_class(no_class: int) -> Callable[[Cond], Cond]:
  """``cond -> cond`` in which every class is ``no_class``."""
  return lambda cond: {**cond, "y": jnp.full_like(cond["y"], no_class)}
