"""What a network is conditioned on: one pytree, or None.

For the networks here it is a dictionary:

  y          classes, [B]
  low_res    small images to upsample, [B, h, w, C]
  low_res_t  the steps to which these are noised, [B]
  augment    how the image was augmented, [B, 9], see ``augmentation``
  vector     numbers of each example, see ``parts.vector``, [B, width]
  planes     images of each example, see ``parts.planes``, [B, H, W, width]
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import (
  concrete,
  parts,
  process,
  samplers,
  shapes,
  upsampling,
)
from diffusion_jax.parts import (
  Plane as Plane,
  Vector as Vector,
  standardised as standardised,
  width as width,
)
from diffusion_jax.prediction import Cond
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule

# Numbers that no step reaches, so that these keys are never those of a step.
LABELS, LOW_RES, AUGMENT, VECTORS, PLANES = (2**32 - n for n in (1, 2, 5, 6, 7))
# The name of the label among the parts that dropout can hide.
CLASS = "class"


@dataclasses.dataclass(frozen=True)
class Conditions:
  """Makes the condition of a batch.

  Attributes:
    schedule: The noise schedule of the small images.
    num_classes: The number of classes; None if the model has no classes.
    label_dropout: Fraction of labels that training replaces by an extra class,
      ``num_classes``, for classifier-free guidance.
    low_res: Height and width of the small images to upsample; None if there
      are none.
    noise: The largest noise step of the small images; if above 0, their step
      is a condition, too.
    vectors: Numbers of each example, in parts with a dropout each.
    planes: Images of each example, likewise.
  """

  schedule: Schedule
  num_classes: int | None = None
  label_dropout: float = 0.0
  low_res: tuple[int, ...] | None = None
  noise: int = 0
  vectors: tuple[Vector, ...] = ()
  planes: tuple[Plane, ...] = ()

  def __post_init__(self):
    if self.label_dropout and self.num_classes is None:
      raise ValueError(
        f"label_dropout={self.label_dropout} hides labels, but num_classes="
        "None: vectors and planes have a dropout of their own"
      )

  def draw(self, batch: Any, key: Key[Array, ""], step: Any) -> Cond:
    """The condition of a batch in training.

    It is drawn for the whole batch, so that neither micro-batches nor devices
    change it.

    Args:
      batch: "image", and "label" if the model has classes; each vector and
        plane by its name; "augment", if images are augmented.
      key: The run's training key.
      step: Number of updates so far.

    Returns:
      The condition.
    """
    key_labels, key_small, key_vectors, key_planes = (
      jax.random.fold_in(jax.random.fold_in(key, purpose), step)
      for purpose in (LABELS, LOW_RES, VECTORS, PLANES)
    )
    missing = [
      part.name
      for part in (*self.vectors, *self.planes)
      if part.name not in batch
    ]
    if missing:
      raise ValueError(
        f"the batch has no {', '.join(missing)}; data with these are needed, "
        "see data.vectors.attach and data.beside.attach"
      )
    cond = self.of(batch["image"], batch.get("label"), batch)
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
    if self.vectors:
      cond["vector"] = parts.drop(key_vectors, cond["vector"], self.vectors)
    if self.planes:
      cond["planes"] = parts.drop(key_planes, cond["planes"], self.planes)
    return cond

  def of(
    self,
    x0: Batch,
    y: Int[Array, " B"] | None,
    numbers: Mapping[str, Any] | None = None,
  ) -> Cond:
    """The condition of clean images, without dropout and without noise."""
    process.check_floats(x0, "image")
    low_res = None
    if self.low_res is not None:
      low_res = upsampling.shrink(x0, self.low_res)
    numbers = {} if numbers is None else numbers
    numbers = {n: numbers[n] for n in self._part_names() if n in numbers}
    size = x0.shape[1:3] if self.planes else None
    return self.given(y, low_res, numbers, count=len(x0), size=size)

  def given(
    self,
    y: Any,
    low_res: Float[Array, "B h w C"] | None,
    numbers: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    size: tuple[int, ...] | None = None,
  ) -> Cond:
    """The condition of given values; None if the model takes none.

    Args:
      y: Classes.
      low_res: Clean small images.
      numbers: Vectors by name, [B, n], or [n] for the whole batch; and planes,
        [B, H, W, C] or [H, W, C]. Missing ones are hidden.
      count: The number of examples, if neither y nor low_res is given.
      size: Height and width, if all planes are hidden.

    Returns:
      The condition.

    Raises:
      ValueError: If a class is missing or out of range, there is no part of a
        name, a part has a wrong shape, values are not finite, images are
        integers, or the count is not known.
    """
    cond: dict[str, Any] = {}
    names = self._part_names()
    _check_names(numbers or {}, names)
    if self.num_classes is not None:
      last = self.num_classes - (not self.label_dropout)
      if y is None:
        raise ValueError(f"y=None: pass a class, 0..{last}, for each example")
      concrete.check_range("class y", y, 0, last)
      cond["y"] = y if hasattr(y, "shape") else np.asarray(y)
    if low_res is not None:
      self._check_low_res(low_res)
      cond["low_res"] = low_res
      if self.noise:
        cond["low_res_t"] = jnp.zeros(len(low_res), jnp.int32)
    if count is None and (self.vectors or self.planes):
      given = y if y is not None else low_res
      if given is None:
        raise ValueError(
          f"the number of examples is not known: pass count=N beside {names[0]}"
        )
      count = len(given)
    if self.vectors:
      cond["vector"] = parts.vector(self.vectors, numbers or {}, count or 0)
    if self.planes:
      cond["planes"] = parts.planes(
        self.planes, numbers or {}, count or 0, size
      )
    return cond or None

  def _check_low_res(self, low_res: Any) -> None:
    """Refuses bytes, and images of another size than training has."""
    process.check_floats(low_res, "low_res")
    size = low_res.shape[1:-1]
    if self.low_res is not None and size != tuple(self.low_res):
      raise ValueError(
        f"low_res is of {shapes.by(size)}, and must be of "
        f"{shapes.by(self.low_res)}"
      )

  @property
  def hideable(self) -> tuple[str, ...]:
    """The parts with a dropout, by name: the class, vectors, planes."""
    known = (*self.vectors, *self.planes)
    # With classes alone, the class is the only part there is to hide.
    label = self.label_dropout or (self.num_classes is not None and not known)
    named = (part.name for part in known if part.dropout)
    return ((CLASS,) if label else ()) + tuple(named)

  def _part_names(self) -> list[str]:
    return [part.name for part in (*self.vectors, *self.planes)]

  def null(self, cond: Cond) -> Cond:
    """The condition with every part hidden that has a dropout."""
    return self.without(cond, self.hideable)

  def without(self, cond: Cond, names: Collection[str]) -> Cond:
    """The condition with these parts hidden, as dropout hides them.

    Args:
      cond: The condition.
      names: Names of parts; "class" is the label.

    Returns:
      The condition, of the same shapes.

    Raises:
      ValueError: If there is no such part.
    """
    _check_names(names, [CLASS, *self._part_names()])
    _check_given(cond)
    hidden = dict(cond)
    if CLASS in names and "y" in cond:
      hidden = without_class(self.num_classes or 0)(hidden)
    for key, each in (("vector", self.vectors), ("planes", self.planes)):
      if each:
        count = len(cond[key])
        known = [jnp.full(count, part.name not in names) for part in each]
        hidden[key] = parts.hide(each, cond[key], known)
    return hidden


def noised(
  cond: Cond, schedule: Schedule, key: Key[Array, ""], s: int, images: Any
) -> Cond:
  """The condition with small images noised to step s, keyed by image."""
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

  Needed in training for ``guidance.classifier_free`` (Ho and Salimans 2022,
  algorithm 1): one network then learns both predictions.

  Args:
    key: For the draw.
    y: Labels.
    rate: 0.1 to 0.2 is usual.
    no_class: The label that means no class, usually the number of classes.

  Returns:
    Labels.

  Raises:
    ValueError: If the rate is not in [0, 1]; a traced rate is not checked.
  """
  if isinstance(rate, int | float) and not 0 <= rate <= 1:
    raise ValueError(f"{rate=} must be in [0, 1], the part that is hidden")
  return jnp.where(jax.random.bernoulli(key, rate, y.shape), no_class, y)


def without_class(no_class: int) -> Callable[[Cond], Cond]:
  """``cond -> cond`` that sets every class to ``no_class``."""

  def without(cond):
    _check_given(cond)
    return {**cond, "y": jnp.full_like(cond["y"], no_class)}

  return without


def _check_names(asked: Collection[str], known: list[str]) -> None:
  """Raises ValueError for the name of no part."""
  if unknown := sorted(set(asked) - set(known)):
    raise ValueError(
      f"{unknown[0]!r} is no part of the condition: "
      f"{', '.join(known) or 'it has none'}"
    )


def _check_given(cond: Cond) -> None:
  """Raises ValueError where there is no condition, of which to hide a part."""
  if cond is None:
    raise ValueError(
      "guidance was called without a condition; bind one: given(guided, cond)"
    )
