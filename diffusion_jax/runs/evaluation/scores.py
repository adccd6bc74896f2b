"""Metrics of features: FID, sFID, IS, KID, precision and recall, classes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import sklearn.svm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import diffusion_jax as dj
from diffusion_jax.runs import console
from diffusion_jax.runs.evaluation import features, measures
from diffusion_jax.runs.evaluation.features import Features, Seen
from diffusion_jax.runs.evaluation.references import Reference

# The features that each metric uses: the network's main ones, or others.
METRICS = {
  "fid": "main",
  "sfid": "spatial",
  "is": "logits",
  "kid": "main",
  "pr": "main",
  "fid_inf": "main",
  "agreement": "main",
  "halves": "main",
}
FRECHET = ("fid", "sfid", "fid_inf")  # need only statistics of the data
# Need the features of every image of the data.
BY_PICTURES = ("kid", "pr", "agreement", "halves")
OF_DATA = ("halves",)  # need no samples
FEW = 10_000  # samples, for a Frechet distance
PR_REFERENCE = 10_000  # images, as in the published precision and recall
NEIGHBOURS, SPLITS = 3, 10
HALVES = 5  # splits of the data
# Fewest samples, and fewest images of the data, for each.
LEAST = {
  "fid": 2,
  "sfid": 2,
  "is": SPLITS,
  "kid": 20,
  "pr": NEIGHBOURS + 1,
  "fid_inf": 4,
  "agreement": 2,
  "halves": 4,
}


@dataclasses.dataclass(frozen=True)
class Compared:
  """The features that metrics compare.

  Attributes:
    network: The feature network.
    ours: Features of the samples.
    theirs: Features of the data.
  """

  network: Features
  ours: Seen
  theirs: Seen


def words(name: str, network: Features) -> tuple[str, str]:
  """The names of the Frechet and the kernel distance for these features."""
  known = {"2048": ("FID", "KID"), "spatial": ("sFID", "kernel distance")}
  of = f" ({network.name})"
  return known.get(name, (f"Frechet distance{of}", f"kernel distance{of}"))


def looks_at(metric: str, network: Features) -> str:
  """The name of the features that a metric uses.

  Raises:
    ValueError: If this network does not have them.
  """
  wanted = METRICS[metric]
  if wanted == "main":
    return network.main
  if wanted not in network.others:
    raise ValueError(
      f"{metric} looks at Inception's {wanted}: pass `features=inception`"
    )
  return wanted


def check(
  metrics: Sequence[str],
  network: Features,
  data: Reference,
  shape: tuple[int, ...],
  num: int,
) -> None:
  """Checks, before anything is drawn, that the metrics can be computed.

  Args:
    metrics: Names from ``METRICS``.
    network: The feature network.
    data: The reference.
    shape: Shape of a sample.
    num: The number of samples.

  Raises:
    ValueError: If not; says what is missing.
  """
  for metric in metrics:
    _check_metric(metric, network, data, shape, num)
  shapes = [shape]
  if data.source is not None:
    shapes.append(data.source.image_shape)
  if network.main == "2048" and any(len(one) != 3 for one in shapes):
    raise ValueError(
      f"`features=inception` looks at pictures, and these are of {shape}: pass "
      "`features=pixels`"
    )
  if network.main == features.OWN:
    features.probe(network, shapes)
  elif network.main == "2048":
    for one in shapes:
      jax.eval_shape(
        dj.metrics.inception.prepare, jax.ShapeDtypeStruct((1, *one), np.uint8)
      )


def _check_metric(
  metric: str,
  network: Features,
  data: Reference,
  shape: tuple[int, ...],
  num: int,
) -> None:
  """As ``check``, for one metric."""
  seen, least = looks_at(metric, network), LEAST[metric]
  if num < least and metric not in OF_DATA:
    raise ValueError(f"{metric} of {num} samples: pass `num={least}` or more")
  needs_pictures = metric in BY_PICTURES or (
    metric in FRECHET and seen not in data.gaussians
  )
  if not needs_pictures:
    return
  if data.source is None and network.main != "2048":
    raise ValueError(
      f"{data.name} has statistics of Inception's features: pass "
      "`features=inception`"
    )
  source = data.pictures
  if len(source) < least:
    raise ValueError(
      f"{metric} needs {least} pictures of the data or more, {data.name} has "
      f"{len(source)}"
    )
  if network.main == "pixels":
    measures.check_shapes(
      shape, source.image_shape, covariance=metric in (*FRECHET, "halves")
    )


def look_at_data(
  metrics: Sequence[str], network: Features, data: Reference, batch: int
) -> Seen:
  """The features of the data, computed once for all samples."""
  theirs = Seen(
    {looks_at(m, network) for m in metrics if m in BY_PICTURES},
    {looks_at(m, network) for m in metrics if m in FRECHET},
    data.gaussians,
  )
  if theirs.names:
    features.look(data.pictures, len(data.pictures), network, theirs, batch)
  return theirs


def measure(
  metrics: Sequence[str],
  network: Features,
  data: Reference,
  theirs: Seen,
  samples: dj.data.Source | None,
  num: int,
  *,
  seed: int,
  batch: int,
) -> dict[str, Any]:
  """Computes all metrics, and prints them.

  Args:
    metrics: Names from ``METRICS``, checked by ``check``.
    network: The feature network.
    data: The reference.
    theirs: Its features, see ``look_at_data``.
    samples: The samples to measure; None if no metric needs any.
    num: How many of them.
    seed: Seed of random subsets.
    batch: Images at a time.

  Returns:
    The metrics, and how they were computed.
  """
  ours = Seen({looks_at(m, network) for m in metrics if m not in OF_DATA})
  if samples is not None:
    features.look(samples, num, network, ours, batch)
  row = {
    "feature_network": network.name,
    "reference": data.name,
    "reference_hash": data.fingerprint,
    "reference_images": len(data.pictures) if theirs.names else None,
  }
  what = f"{num} samples, " if samples is not None else ""
  console.say_first(f"{what}{data.name}, features: {network.name}")
  if num < FEW and set(metrics) & set(FRECHET):
    console.say_first(
      f"warning: of fewer than {FEW:,} samples a Frechet distance is too "
      "large; compare it only with those of as many samples, or use kid"
    )
  compared = Compared(network, ours, theirs)
  root = jax.random.key(seed)
  for metric in metrics:
    key = jax.random.fold_in(root, list(METRICS).index(metric))
    row |= FIGURES[metric](compared, looks_at(metric, network), key)
  return row


def _frechet(metric: str) -> Callable[..., dict[str, Any]]:
  def figure(seen: Compared, name: str, key) -> dict[str, Any]:
    reference = seen.theirs.gaussian(name)
    value = dj.metrics.frechet(seen.ours.gaussian(name), reference)
    std = dj.metrics.frechet_std(seen.ours.features(name), reference, key)
    console.say_first(
      f"{words(name, seen.network)[0]}: {value:.4g} +- {std:.2g}"
    )
    return {metric: value, f"{metric}_std": std}

  return figure


def _frechet_infinity(seen: Compared, name: str, key) -> dict[str, Any]:
  ours, reference = seen.ours.features(name), seen.theirs.gaussian(name)
  least = min(5000, len(ours) // 2)
  key_value, key_std = jax.random.split(key)
  value = dj.metrics.frechet_infinity(ours, reference, key_value, least=least)
  std = dj.metrics.frechet_infinity_std(ours, reference, key_std, least=least)
  console.say_first(
    f"{words(name, seen.network)[0]} of infinitely many samples: {value:.4g} "
    f"+- {std:.2g}"
  )
  return {"fid_inf": value, "fid_inf_std": std, "fid_inf_least": least}


def _inception_score(seen: Compared, name: str, key) -> dict[str, Any]:
  found = dj.metrics.inception_score(seen.ours.features(name), SPLITS)
  console.say_first(f"Inception score: {found.score:.3f} +- {found.std:.3f}")
  return {"is": found.score, "is_std": found.std, "is_splits": SPLITS}


def _kernel_distance(seen: Compared, name: str, key) -> dict[str, Any]:
  found = dj.metrics.kernel_distance(
    seen.ours.features(name), seen.theirs.features(name), key
  )
  console.say_first(
    f"{words(name, seen.network)[1]}: {found.distance:.3g} +- "
    f"{found.standard_error:.2g}, {found.subsets} subsets of "
    f"{found.subset_size}"
  )
  return {
    "kid": found.distance,
    "kid_standard_error": found.standard_error,
    "kid_subset_size": found.subset_size,
    "kid_subsets": found.subsets,
  }


def _precision_recall(seen: Compared, name: str, key) -> dict[str, Any]:
  real = seen.theirs.features(name)
  chosen = np.asarray(jax.random.permutation(key, len(real)))[:PR_REFERENCE]
  found = dj.metrics.precision_recall(
    real[chosen], seen.ours.features(name), NEIGHBOURS
  )
  console.say_first(
    f"precision {found.precision:.4f}, recall {found.recall:.4f}, of "
    f"{len(chosen)} reference pictures"
  )
  return {
    "precision": found.precision,
    "recall": found.recall,
    "pr_neighbours": NEIGHBOURS,
    "pr_reference_images": len(chosen),
  }


def _agreement(seen: Compared, name: str, key) -> dict[str, Any]:
  """How often a classifier predicts the requested class.

  It is trained on one half of the data; its accuracy on the other half is
  reported too.
  """
  x, y = seen.theirs.features(name), seen.theirs.labels
  order = np.random.default_rng(0).permutation(len(x))
  learnt, held_out = np.array_split(order, 2)
  if name == "pixels":
    classifier, kind = sklearn.svm.SVC(C=10), "SVC(C=10)"
  else:
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    kind = "linear discriminant analysis, shrunk by Ledoit and Wolf,"
  classifier.fit(x[learnt], y[learnt])
  ours = seen.ours.features(name)
  agreement = float(classifier.score(ours, seen.ours.labels))
  accuracy = float(classifier.score(x[held_out], y[held_out]))
  console.say_first(
    f"{agreement:.1%} of {len(ours)} samples are of the class asked for; the "
    f"classifier is right on {accuracy:.1%} of the held-out data"
  )
  return {
    "agreement": agreement,
    "agreement_by": f"{kind} of {seen.network.name}, on one half of the data",
    "agreement_accuracy": accuracy,
  }


def _halves(seen: Compared, name: str, key) -> dict[str, Any]:
  real = seen.theirs.features(name)
  value = measures.halves_distance(real, HALVES)
  console.say_first(
    f"{words(name, seen.network)[0]} of one random half of the {len(real)} "
    f"pictures to the other (mean of {HALVES}): {value:.4g}"
  )
  return {"halves": value, "halves_splits": HALVES}


FIGURES = {
  "fid": _frechet("fid"),
  "sfid": _frechet("sfid"),
  "is": _inception_score,
  "kid": _kernel_distance,
  "pr": _precision_recall,
  "fid_inf": _frechet_infinity,
  "agreement": _agreement,
  "halves": _halves,
}
