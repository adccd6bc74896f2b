"""Networks of features, and what is remembered of what they see."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm

import diffusion_jax as dj
from experiments import stored

NETWORKS = ("pixels", "inception")
DOWNLOAD = "download"


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


def named(name: str, inception: str | None) -> Features:
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
