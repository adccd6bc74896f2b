"""Measures of features: FID, sFID, IS, KID, precision and recall."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import diffusion_jax as dj
from experiments import cli, measures
from experiments.features import Features, Seen, look
from experiments.references import Reference

# What each metric looks at: the network's main features, or others.
METRICS = {
  "fid": "main",
  "sfid": "spatial",
  "is": "logits",
  "kid": "main",
  "pr": "main",
  "fid_inf": "main",
}
FRECHET = ("fid", "sfid", "fid_inf")  # need only statistics of the data
BY_PICTURES = ("kid", "pr")  # need the data's features one by one
FEW = 10_000  # samples, for a Frechet distance
PR_REFERENCE = 10_000  # pictures, as of the published precision and recall
NEIGHBOURS, SPLITS = 3, 10
# Fewest samples of each.
LEAST = {"fid": 2, "sfid": 2, "is": SPLITS, "kid": 20, "pr": 4, "fid_inf": 4}
# What the Frechet distance of these features is called.
WORDS = {"pixels": "Frechet distance", "2048": "FID", "spatial": "sFID"}


def looks_at(metric: str, network: Features) -> str:
  """The name of the features that a metric looks at.

  Raises:
    ValueError: If this network has none of these.
  """
  wanted = METRICS[metric]
  if wanted == "main":
    return network.main
  if wanted not in network.others:
    raise ValueError(
      f"{metric} looks at Inception's {wanted}: pass --features=inception"
    )
  return wanted


def check(
  metrics: Sequence[str],
  network: Features,
  data: Reference,
  shape: tuple[int, ...],
  num: int,
) -> None:
  """Refuses, before anything is drawn, what could not be measured.

  Args:
    metrics: Of ``METRICS``.
    network: Of features.
    data: What to compare with.
    shape: Of a sample.
    num: Of samples.

  Raises:
    ValueError: Saying what is missing.
  """
  for metric in metrics:
    seen = looks_at(metric, network)
    if num < LEAST[metric]:
      raise ValueError(
        f"{metric} of {num} samples: pass --num={LEAST[metric]} or more"
      )
    if metric in BY_PICTURES or (
      metric in FRECHET and seen not in data.gaussians
    ):
      source = data.pictures
      if network.main == "pixels":
        measures.check_shapes(
          shape, source.image_shape, covariance=metric in FRECHET
        )
  if metrics and network.main != "pixels":
    jax.eval_shape(
      dj.metrics.inception.prepare, jax.ShapeDtypeStruct((1, *shape), np.uint8)
    )


def measure(
  metrics: Sequence[str],
  network: Features,
  data: Reference,
  samples: dj.data.Source,
  num: int,
  *,
  seed: int,
  batch: int,
) -> dict[str, Any]:
  """The figures of all metrics, which are also said.

  Args:
    metrics: Of ``METRICS``, checked by ``check``.
    network: Of features.
    data: What to compare with.
    samples: To measure.
    num: How many of them.
    seed: Of random parts.
    batch: Pictures at a time.

  Returns:
    The figures and how they were made.
  """
  one_by_one = [m for m in metrics if m in ("is", "fid_inf", *BY_PICTURES)]
  ours = Seen(
    {looks_at(m, network) for m in one_by_one},
    {looks_at(m, network) for m in metrics if m in ("fid", "sfid")},
  )
  theirs = Seen(
    {looks_at(m, network) for m in metrics if m in BY_PICTURES},
    {looks_at(m, network) for m in metrics if m in FRECHET}
    - data.gaussians.keys(),
  )
  look(samples, num, network, ours, batch)
  if theirs.names:
    look(data.pictures, len(data.pictures), network, theirs, batch)
  row = {
    "feature_network": network.name,
    "reference": data.name,
    "reference_hash": data.fingerprint,
    "reference_images": len(data.pictures) if theirs.names else None,
  }
  cli.say_first(f"{num} samples, {data.name}, features: {network.name}")
  if num < FEW and set(metrics) & set(FRECHET):
    cli.say_first(
      f"warning: of fewer than {FEW:,} samples a Frechet distance is too "
      "large; compare it only with those of as many samples, or use kid"
    )
  root = jax.random.key(seed)
  for metric in metrics:
    key = jax.random.fold_in(root, list(METRICS).index(metric))
    row |= FIGURES[metric](looks_at(metric, network), ours, theirs, data, key)
  return row


def _gaussian(name: str, theirs: Seen, data: Reference) -> dj.metrics.Gaussian:
  """Statistics of the data: the reference's own, if it has them."""
  return data.gaussians.get(name) or theirs.gaussian(name)


def _frechet(metric: str) -> Callable[..., dict[str, Any]]:
  def figure(name, ours, theirs, data, key):
    value = dj.metrics.frechet(
      ours.gaussian(name), _gaussian(name, theirs, data)
    )
    cli.say_first(f"{WORDS[name]}: {value:.4g}")
    return {metric: value}

  return figure


def _frechet_infinity(name, ours, theirs, data, key) -> dict[str, Any]:
  features = ours.features(name)
  least = min(5000, len(features) // 2)
  value = dj.metrics.frechet_infinity(
    features, _gaussian(name, theirs, data), key, least=least
  )
  cli.say_first(f"{WORDS[name]} of infinitely many samples: {value:.4g}")
  return {"fid_inf": value, "fid_inf_least": least}


def _inception_score(name, ours, theirs, data, key) -> dict[str, Any]:
  found = dj.metrics.inception_score(ours.features(name), SPLITS)
  cli.say_first(f"Inception score: {found.score:.3f} +- {found.std:.3f}")
  return {"is": found.score, "is_std": found.std, "is_splits": SPLITS}


def _kernel_distance(name, ours, theirs, data, key) -> dict[str, Any]:
  found = dj.metrics.kernel_distance(
    ours.features(name), theirs.features(name), key
  )
  cli.say_first(
    f"KID: {found.distance:.3g} +- {found.standard_error:.2g}, "
    f"{found.subsets} subsets of {found.subset_size}"
  )
  return {
    "kid": found.distance,
    "kid_standard_error": found.standard_error,
    "kid_subset_size": found.subset_size,
    "kid_subsets": found.subsets,
  }


def _precision_recall(name, ours, theirs, data, key) -> dict[str, Any]:
  real = theirs.features(name)
  chosen = np.asarray(jax.random.permutation(key, len(real)))[:PR_REFERENCE]
  found = dj.metrics.precision_recall(
    real[chosen], ours.features(name), NEIGHBOURS
  )
  cli.say_first(
    f"precision {found.precision:.4f}, recall {found.recall:.4f}, of "
    f"{len(chosen)} reference pictures"
  )
  return {
    "precision": found.precision,
    "recall": found.recall,
    "pr_neighbours": NEIGHBOURS,
    "pr_reference_images": len(chosen),
  }


FIGURES = {
  "fid": _frechet("fid"),
  "sfid": _frechet("sfid"),
  "is": _inception_score,
  "kid": _kernel_distance,
  "pr": _precision_recall,
  "fid_inf": _frechet_infinity,
}
