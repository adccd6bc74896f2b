"""Measures of features: FID, sFID, IS, KID, precision and recall."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

import diffusion_jax as dj
from experiments import cli, measures, stored

NETWORKS = ("pixels", "inception")
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
DOWNLOAD = "download"
# What the Frechet distance of these features is called.
WORDS = {"pixels": "Frechet distance", "2048": "FID", "spatial": "sFID"}


@dataclasses.dataclass(frozen=True)
class Reference:
  """The data that samples are compared with.

  Attributes:
    name: For people.
    fingerprint: Of its contents.
    source: Its pictures, if they are known.
    gaussians: Its statistics by feature name, of those that are known.
  """

  name: str
  fingerprint: str
  source: dj.data.Source | None
  gaussians: dict[str, dj.metrics.Gaussian]

  @property
  def pictures(self) -> dj.data.Source:
    """The source.

    Raises:
      ValueError: If only statistics are known.
    """
    if self.source is None:
      raise ValueError(
        f"{self.name} has statistics but no pictures, which this needs; name "
        "pictures as --reference"
      )
    return self.source


def reference(name: str) -> Reference:
  """What --reference names: an .npz of statistics, or pictures.

  Raises:
    ValueError: If it is neither.
  """
  path = pathlib.Path(name).expanduser()
  if path.suffix != ".npz" or not path.is_file():
    return of_source(dj.data.load(name))
  found = dj.metrics.read_reference(path)
  source = dj.data.load(path) if found.has_images else None
  return Reference(path.name, found.fingerprint, source, found.gaussians)


def of_source(source: dj.data.Source) -> Reference:
  """A source as what to compare with."""
  return Reference(source.name, source.fingerprint, source, {})


@dataclasses.dataclass(frozen=True)
class Features:
  """A feature network.

  Attributes:
    name: For people, with a digest of its weights.
    main: The name of the features that most metrics look at.
    others: Of further ones.
    make: Names -> the network for ``dj.metrics.extract``, which returns
      these features in a dict.
  """

  name: str
  main: str
  others: tuple[str, ...]
  make: Callable[[Sequence[str]], Callable]

  def of(self, metric: str) -> str:
    """The name of the features that a metric looks at.

    Raises:
      ValueError: If this network has none of these.
    """
    wanted = METRICS[metric]
    if wanted == "main":
      return self.main
    if wanted not in self.others:
      raise ValueError(
        f"{metric} looks at Inception's {wanted}: pass --features=inception"
      )
    return wanted


def features(name: str, inception: str | None) -> Features:
  """The network that --features and --inception name.

  Raises:
    ValueError: If its weights are not there.
  """
  if name == "pixels":
    return Features(
      "pixels", "pixels", (), lambda _: lambda x: {name: dj.metrics.pixels(x)}
    )
  download = inception == DOWNLOAD
  path = None if download or inception is None else pathlib.Path(inception)
  try:
    params = dj.metrics.inception_weights.load(path, download=download)
  except ValueError as error:
    raise ValueError(
      f"--inception: {error}, or pass --inception={DOWNLOAD}"
    ) from error
  return Features(
    f"inception {stored.fingerprint(params)}",
    "2048",
    ("spatial", "logits"),
    lambda names: dj.metrics.inception.features(params, names),
  )


def check(
  metrics: Sequence[str], network: Features, data: Reference, shape: tuple
) -> None:
  """Refuses, before anything is drawn, what could not be measured.

  Args:
    metrics: Of ``METRICS``.
    network: Of features.
    data: What to compare with.
    shape: Of a sample.

  Raises:
    ValueError: Saying what is missing.
  """
  for metric in metrics:
    look = network.of(metric)
    if metric in BY_PICTURES or (
      metric in FRECHET and look not in data.gaussians
    ):
      source = data.pictures
      if network.main == "pixels" and source.image_shape != shape:
        raise ValueError(
          f"samples of {shape} and data of {source.image_shape} have different "
          "pixels; compare pictures of one shape, or use --features=inception"
        )
    if metric in FRECHET and network.main == "pixels":
      measures.check_dimensions(shape)
  if metrics and network.main != "pixels":
    jax.eval_shape(
      dj.metrics.inception.prepare, jax.ShapeDtypeStruct((1, *shape), np.uint8)
    )


class Seen:
  """What metrics need to know of the features of some pictures.

  Args:
    kept: Names of the features to keep one by one.
    summed: Names of those whose mean and covariance are enough.
  """

  def __init__(self, kept: set[str], summed: set[str]):
    self._parts = {name: [] for name in kept}
    self._moments = dict.fromkeys(summed)

  @property
  def names(self) -> list[str]:
    """All features that are looked at."""
    return sorted(self._parts.keys() | self._moments.keys())

  def add(self, found: dict[str, np.ndarray]) -> None:
    """Takes one batch in."""
    for name, parts in self._parts.items():
      parts.append(found[name])
    for name, before in self._moments.items():
      new = dj.metrics.moments.moments(found[name])
      both = new if before is None else dj.metrics.moments.merge(before, new)
      self._moments[name] = both

  def features(self, name: str) -> np.ndarray:
    """Those that were kept, [N, D]."""
    return np.concatenate(self._parts[name])

  def gaussian(self, name: str) -> dj.metrics.Gaussian:
    """Mean and covariance."""
    moments = self._moments[name]
    assert moments is not None
    return moments.gaussian()


def look(
  source: dj.data.Source, num: int, network: Features, seen: Seen, batch: int
) -> Seen:
  """Fills ``seen`` from the first ``num`` pictures, under a progress bar."""

  def batches() -> Iterator[np.ndarray]:
    for start in range(0, num, batch):
      indices = np.arange(start, min(start + batch, num))
      yield source.gather(indices)["image"]
      bar.update(len(indices))

  if not seen.names:
    return seen
  with tqdm.tqdm(
    total=num,
    unit="image",
    desc=f"features of {source.name}",
    disable=not sys.stderr.isatty(),
    leave=False,
  ) as bar:
    found = network.make(seen.names)
    for part in dj.metrics.extract(found, batches(), batch_size=batch):
      seen.add(part)
  return seen


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
    {network.of(m) for m in one_by_one},
    {network.of(m) for m in metrics if m in ("fid", "sfid")},
  )
  theirs = Seen(
    {network.of(m) for m in metrics if m in BY_PICTURES},
    {network.of(m) for m in metrics if m in FRECHET} - data.gaussians.keys(),
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
    row |= FIGURES[metric](network.of(metric), ours, theirs, data, key)
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
