"""What a network is conditioned on: one pytree, or None.

For the networks here it is a dictionary:

  y          classes, [B]
  low_res    small pictures to enlarge, [B, h, w, C]
  low_res_t  the steps to which these are noised, [B]
  augment    what was done to the picture, [B, 9], see ``augmentation``
  vector     numbers of each example, see ``vector``, [B, width]
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax import concrete, process, samplers, upsampling
from diffusion_jax.prediction import Cond
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule

# Numbers that no step reaches, for keys of their own.
LABELS, LOW_RES, AUGMENT, VECTORS = (2**32 - n for n in (1, 2, 5, 6))


class Vector(NamedTuple):
  """One part of what is known of an example: an angle, a position, a dose.

  Attributes:
    name: As the batch has it.
    mean: Of each of its numbers over the data, which becomes 0.
    std: Their standard deviations, which become 1.
    dropout: Part of the examples from which training hides it.
  """

  name: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  dropout: float = 0.0


def standardised(
  numbers: Mapping[str, np.ndarray], dropout: Mapping[str, float] | float = 0.0
) -> tuple[Vector, ...]:
  """The parts of a source's ``vectors``, as ``Conditions`` takes them.

  Args:
    numbers: [N, n] by name, of all examples.
    dropout: Part of the examples from which training hides each; one number,
      or by name.

  Returns:
    The parts, with mean and standard deviation over the data.

  Raises:
    ValueError: If a rate is none, is of no part, or a part is constant.
  """
  rates = dropout
  if not isinstance(rates, Mapping):
    rates = dict.fromkeys(numbers, rates)
  for name, rate in rates.items():
    if name not in numbers or not 0 <= rate < 1:
      raise ValueError(
        f"dropout of {name!r} is {rate}: must be in [0, 1), of one of "
        f"{', '.join(numbers) or 'no vectors'}"
      )
  parts = []
  for name, array in numbers.items():
    wide = np.asarray(array, np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    if not (std > 0).all():
      raise ValueError(
        f"{name} is the same in all examples and says nothing: leave it out"
      )
    rate = rates.get(name, 0.0)
    parts.append(Vector(name, tuple(mean.tolist()), tuple(std.tolist()), rate))
  return tuple(parts)


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
    vectors: Numbers of each example, in parts that are hidden one by one.
  """

  schedule: Schedule
  num_classes: int | None = None
  label_dropout: float = 0.0
  low_res: tuple[int, ...] | None = None
  noise: int = 0
  vectors: tuple[Vector, ...] = ()

  def draw(self, batch: Any, key: Key[Array, ""], step: Any) -> Cond:
    """The condition of a batch in training.

    Drawn for the whole batch, so that neither micro-batches nor devices
    change it.

    Args:
      batch: "image" and "label", and each vector by its name; "augment", where
        pictures are augmented.
      key: The run's training key.
      step: Number of updates so far.

    Returns:
      The condition.
    """
    key_labels, key_small, key_vectors = (
      jax.random.fold_in(jax.random.fold_in(key, purpose), step)
      for purpose in (LABELS, LOW_RES, VECTORS)
    )
    missing = [v.name for v in self.vectors if v.name not in batch]
    if missing:
      raise ValueError(
        f"the batch has no {', '.join(missing)}; data with these vectors are "
        "needed, see data.vectors.attach"
      )
    cond = self.of(batch["image"], batch["label"], batch)
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
      cond["vector"] = drop_parts(key_vectors, cond["vector"], self.vectors)
    return cond

  def of(
    self,
    x0: Batch,
    y: Int[Array, " B"] | None,
    numbers: Mapping[str, Any] | None = None,
  ) -> Cond:
    """The condition of clean images: nothing given is hidden or noised."""
    low_res = None
    if self.low_res is not None:
      low_res = upsampling.shrink(x0, self.low_res)
    numbers = {} if numbers is None else numbers
    return self.given(y, low_res, numbers, count=len(x0))

  def given(
    self,
    y: Any,
    low_res: Float[Array, "B h w C"] | None,
    numbers: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
  ) -> Cond:
    """A condition of what is known; None if nothing can be.

    Args:
      y: Classes.
      low_res: Clean small pictures.
      numbers: Vectors by their names, [B, n], or [n] for all alike;
        those that are missing are hidden.
      count: How many examples, where neither y nor low_res says it.

    Returns:
      The condition.

    Raises:
      ValueError: If a class, or a vector's width, is none of these.
    """
    cond: dict[str, Any] = {}
    if self.num_classes is not None:
      last = self.num_classes - (not self.label_dropout)
      concrete.check_range("class y", y, 0, last)
      cond["y"] = y
    if low_res is not None:
      cond["low_res"] = low_res
      if self.noise:
        cond["low_res_t"] = jnp.zeros(len(low_res), jnp.int32)
    if self.vectors:
      if count is None:
        count = len(next(a for a in (y, low_res) if a is not None))
      cond["vector"] = vector(self.vectors, numbers or {}, count)
    return cond or None

  def null(self, cond: Cond) -> Cond:
    """The condition without what training hides, as training hides it."""
    hidden = dict(cond)
    if "y" in cond and (self.label_dropout or not self.vectors):
      hidden = without_class(self.num_classes or 0)(hidden)
    if self.vectors:
      known = [
        jnp.full(len(cond["vector"]), not v.dropout) for v in self.vectors
      ]
      hidden["vector"] = hide(self.vectors, cond["vector"], known)
    return hidden


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


def vector(
  parts: Sequence[Vector], numbers: Mapping[str, Any], count: int
) -> Float[Array, "B width"]:
  """All parts in a row, each standardised and followed by 1; hidden, zeros.

  The 1 tells a network what is hidden from what is average.

  Args:
    parts: Which there can be.
    numbers: Those that are known, by name: [B, n], or [n] for all alike.
    count: B.

  Returns:
    The row of each example.

  Raises:
    ValueError: If a part has another number of numbers.
  """
  row = []
  for part in parts:
    n = len(part.mean)
    given = numbers.get(part.name)
    if given is None:
      row.append(jnp.zeros((count, n + 1)))
      continue
    given = jnp.asarray(given, jnp.float32)
    if given.shape in ((), (count,)) and n == 1:
      given = given[..., None]
    if given.shape not in ((count, n), (n,)):
      raise ValueError(
        f"{part.name} is {list(given.shape)}: must be [{count}, {n}], or [{n}]"
        " for all alike"
      )
    given = jnp.broadcast_to(given, (count, n))
    scaled = (given - jnp.array([part.mean])) / jnp.array([part.std])
    row.append(jnp.concatenate([scaled, jnp.ones((count, 1))], axis=1))
  return jnp.concatenate(row, axis=1)


def width(parts: Sequence[Vector]) -> int:
  """Of the row of all parts, which a network takes as ``vector``."""
  return sum(len(part.mean) + 1 for part in parts)


def drop_parts(
  key: Key[Array, ""], row: Float[Array, "B width"], parts: Sequence[Vector]
) -> Float[Array, "B width"]:
  """Hides each part of each example with the part's own probability."""
  known = [
    ~jax.random.bernoulli(jax.random.fold_in(key, k), part.dropout, (len(row),))
    for k, part in enumerate(parts)
  ]
  return hide(parts, row, known)


def hide(
  parts: Sequence[Vector],
  row: Float[Array, "B width"],
  known: Sequence[Bool[Array, " B"]],
) -> Float[Array, "B width"]:
  """The row in which the parts that are not known are zeros."""
  widths = [len(part.mean) + 1 for part in parts]
  mask = jnp.repeat(
    jnp.stack(known, axis=1), np.array(widths), axis=1,
    total_repeat_length=sum(widths),
  )  # fmt: skip
  return jnp.where(mask, row, 0)
