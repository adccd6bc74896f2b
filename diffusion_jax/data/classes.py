"""Classes: from the values stored with each image to labels and names."""

import re
import warnings
from collections.abc import Sequence

import numpy as np

from diffusion_jax.data import sources

MAX_CLASSES = 2**20


def counted(where: str, labels: np.ndarray) -> tuple[str, ...]:
  """The names of classes that only have numbers: "0", "1", ...

  Args:
    where: The data, for errors.
    labels: Integers [N].

  Raises:
    ValueError: If one is below 0 or too large.
  """
  least, most = int(labels.min()), int(labels.max())
  if least < 0 or most >= MAX_CLASSES:
    raise ValueError(
      f"{where} has labels from {least} to {most}: must count from 0 and stay"
      f" below {MAX_CLASSES}"
    )
  if least > 0:
    warnings.warn(
      f"{where} has labels from {least} to {most}, none of class 0: if its"
      " classes count from 1, subtract 1",
      stacklevel=5,
    )
  return tuple(str(label) for label in range(most + 1))


def of(
  where: str, stored: Sequence[int | str | None]
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Labels and class names from the values stored with each image.

  Numbers, also as strings, are labels; names are sorted. All None is
  unlabelled.

  >>> of("pets", ["dog", "cat", "dog"])
  (array([1, 0, 1], dtype=int32), ('cat', 'dog'))

  Args:
    where: The data, for errors.
    stored: A class for each image, None if there is none.

  Returns:
    int32 [N], and a name for each class; zeros and no names if unlabelled.

  Raises:
    ValueError: If only some have a class, or numbers do not count from 0.
  """
  missing = [k for k, one in enumerate(stored) if one is None]
  if len(missing) == len(stored):
    return np.zeros(len(stored), np.int32), ()
  if missing:
    raise ValueError(
      f"{where} has {len(missing):,} of {len(stored):,} pictures without a"
      f" class, the first of them no. {missing[0]:,}: give every picture a"
      " class, or none"
    )
  texts = [str(one).strip() for one in stored]
  # int() also takes 1_0 for 10.
  if not all(re.fullmatch("[+-]?[0-9]{1,18}", text) for text in texts):
    names = sorted(set(texts))
    wrong = next((one for one in names if sources.CONTROL.search(one)), None)
    if wrong is not None:
      raise ValueError(
        f"{where} has the class {wrong!r}, whose name has a control character:"
        " rename it"
      )
    number = {name: k for k, name in enumerate(names)}
    labels = np.array([number[text] for text in texts], np.int32)
    return labels, tuple(names)
  labels = np.array([int(text) for text in texts], np.int64)
  return labels.astype(np.int32), counted(where, labels)


def named(
  where: str, labels: np.ndarray, names: Sequence[str]
) -> tuple[str, ...]:
  """The class names of a data set, if they fit its labels.

  Raises:
    ValueError: If a label has no name.
  """
  wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
  if wrong.size:
    raise ValueError(
      f"{where} has the label {labels[wrong[0]]} at picture {wrong[0]:,}, but"
      f" {len(names)} classes ({sources.some(list(names), 3)}): a split without"
      " labels cannot train with classes, name another"
    )
  return tuple(names)
