"""The Inception score."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.moments import finite


class InceptionScore(NamedTuple):
  """The score over parts of the samples.

  Attributes:
    score: Mean over the parts, from 1 to the number of classes.
    std: Standard deviation over the parts, as published.
  """

  score: float
  std: float


def inception_score(
  logits: Float[np.ndarray, "N K"], splits: int = 10
) -> InceptionScore:
  """The score exp E_x KL(p(y | x) || p(y))  (Salimans et al. 2016, sec. 4).

  Args:
    logits: log p(y | x) of the classes up to a constant. Published scores use
      Inception's 1008 without the bias.
    splits: Number of parts, in order, each with its own p(y).

  Returns:
    Mean and standard deviation over the parts. The score grows with the number
    of samples: published ones use 50,000 in 10 parts.

  Raises:
    ValueError: If there are fewer samples than parts.
  """
  logits = finite(logits)
  if logits.ndim != 2 or not 1 <= splits <= len(logits):
    raise ValueError(
      f"logits have shape {logits.shape}; pass (N, K) with N at least {splits=}"
    )
  bounds = [len(logits) * i // splits for i in range(splits + 1)]
  scores = [
    np.exp(mutual_information(logits[start:stop]))
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
  ]
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def mutual_information(logits: Float[np.ndarray, "N K"]) -> float:
  """Mean over x of sum_y p(y | x) (log p(y | x) - log p(y)), in nats."""
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  p = np.exp(log_p)
  marginal = p.mean(axis=0)
  # 0 log 0 = 0, for classes without samples.
  log_marginal = np.log(np.where(marginal > 0, marginal, 1))
  return float((p * (log_p - log_marginal[None])).sum(axis=1).mean())
