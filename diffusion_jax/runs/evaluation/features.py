"""Feature networks, and what to keep of their features."""

import dataclasses
import functools
import importlib
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

import diffusion_jax as dj
from diffusion_jax.data import sources
from diffusion_jax.runs.evaluation import stored

NAMES = ("pixels", "inception")
DOWNLOAD = "download"
OWN = "features"  # the name of a user's network's features


@dataclasses.dataclass(frozen=True)
class Features:
  """A feature network.

  Attributes:
    name: Its name in output, with a digest of its weights.
    main: The name of the features that most metrics use.
    others: The names of further features.
    make: Names -> the network for ``dj.metrics.extract``, which returns
      these features in a dict.
    jit: False if JAX cannot trace it.
  """

  name: str
  main: str
  others: tuple[str, ...]
  make: Callable[[Sequence[str]], Callable]
  jit: bool = True


def named(name: str, inception: str | None) -> Features:
  """The network of the options `features` and `inception`.

  Raises:
    ValueError: If there is no such network, or its weights are missing.
  """
  if ":" in name:
    return _own(name)
  if name not in NAMES:
    raise ValueError(
      f"`features` {name!r} is not one of {', '.join(NAMES)}; a network of "
      "your own is module:function or path/to/file.py:function"
    )
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
      f"`inception`: {error}, or pass `inception={DOWNLOAD}`"
    ) from error
  return Features(
    f"inception {stored.fingerprint(params)}",
    "2048",
    ("spatial", "logits"),
    lambda names: dj.metrics.inception.features(params, names),
  )


def _own(spec: str) -> Features:
  """The network that ``function()`` of a module or of a file returns.

  ``uint8 images [B, H, W, C] -> features [B, D]``. It may have a ``name``,
  ideally with a digest of its weights, and ``jit = False`` if JAX cannot trace
  it. By default its name has a digest of the file, and of the arrays of a
  ``jax.tree_util.Partial``.

  Raises:
    ValueError: If there is no such function, or it fails.
  """
  module, _, function = spec.rpartition(":")
  try:
    if module.endswith(".py"):
      names = runpy.run_path(str(pathlib.Path(module).expanduser()))
    else:
      names = vars(importlib.import_module(module))
    if function not in names:
      raise ValueError(f"there is no {function!r} in {module}")
    network = names[function]()
  except Exception as error:
    raise ValueError(f"`features={spec}`: {_words(error)}") from error
  if not callable(network):
    raise ValueError(
      f"`features={spec}`: {function}() returned a {type(network).__name__}; "
      "it must return a network, images -> features"
    )
  name = getattr(network, "name", None) or f"{spec} {_digest(names, network)}"
  apply = jax.tree_util.Partial(_in_dict, network)
  if not isinstance(network, jax.tree_util.Partial):
    apply = functools.partial(_in_dict, network)
  jit = bool(getattr(network, "jit", True))
  return Features(str(name), OWN, (), lambda _: apply, jit)


def _digest(names: Mapping[str, Any], network: Callable) -> str:
  """Of the file that defined these names, and of the network's arrays."""
  file = pathlib.Path(names.get("__file__") or "")
  code = [np.fromfile(file, np.uint8)] if file.is_file() else []
  is_tree = isinstance(network, jax.tree_util.Partial)
  arrays = [stored.fingerprint(network)] if is_tree else []
  return sources.fingerprint(*code, *arrays)


def _in_dict(network: Callable, images) -> dict:
  return {OWN: network(images)}


def _words(error: Exception) -> str:
  """An error of a user's code on one line, with its type where that helps."""
  text = sources.one_line(error)
  plain = isinstance(error, (ValueError, ImportError, OSError))
  return text if plain else f"{type(error).__name__}: {text}"


def probe(network: Features, shapes: Sequence[tuple[int, ...]]) -> None:
  """Tries the network on two black images of each shape, before sampling.

  Args:
    network: The feature network.
    shapes: Shapes of an image.

  Raises:
    ValueError: If the network fails, or its features are not finite vectors of
      one length.
  """
  lengths = {}
  for shape in dict.fromkeys(shapes):
    black = np.zeros((2, *shape), np.uint8)
    try:
      (found,) = dj.metrics.extract(
        network.make([network.main]), [black], batch_size=2, jit=network.jit
      )
    except Exception as error:
      hint = "; if JAX cannot trace it, it must have jit = False"
      raise ValueError(
        f"features {network.name} of two pictures of {shape}: {_words(error)}"
        + (hint if network.jit else "")
      ) from error
    vectors = found[network.main]
    if vectors.ndim != 2 or len(vectors) != 2 or not vectors.size:
      raise ValueError(
        f"features {network.name} of two pictures have shape {vectors.shape}; "
        "a network returns one vector per picture, (2, D)"
      )
    _check_finite(network.name, vectors)
    lengths[shape] = vectors.shape[1]
  if len(set(lengths.values())) > 1:
    raise ValueError(
      f"features {network.name} differ in length between samples and data, "
      f"{lengths}: compare pictures of one shape"
    )


def _check_finite(name: str, vectors: np.ndarray) -> None:
  """Raises for features that would make every metric NaN."""
  if not np.isfinite(vectors).all():
    raise ValueError(f"features {name} are not all finite")


class Seen:
  """The features of some images, as far as metrics need them.

  Args:
    kept: Names of the features to keep for every image.
    summed: Names of those whose mean and covariance suffice.
    gaussians: Means and covariances that are known already.
  """

  def __init__(
    self,
    kept: Iterable[str],
    summed: Iterable[str] = (),
    gaussians: Mapping[str, dj.metrics.Gaussian] | None = None,
  ):
    self._gaussians = dict(gaussians or {})
    self._parts = {name: [] for name in kept}
    self._moments = dict.fromkeys(
      set(summed) - self._parts.keys() - self._gaussians.keys()
    )
    self._labels = []

  @property
  def names(self) -> list[str]:
    """The names of all features."""
    return sorted(self._parts.keys() | self._moments.keys())

  @property
  def labels(self) -> np.ndarray:
    """The labels of the images, [N]."""
    return np.concatenate(self._labels)

  def add(self, found: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Adds a batch."""
    self._labels.append(labels)
    for name, parts in self._parts.items():
      parts.append(found[name])
    for name, before in self._moments.items():
      new = dj.metrics.moments.moments(found[name])
      both = new if before is None else dj.metrics.moments.merge(before, new)
      self._moments[name] = both

  def features(self, name: str) -> np.ndarray:
    """The features of every image, [N, D]."""
    if len(self._parts[name]) > 1:
      self._parts[name] = [np.concatenate(self._parts[name])]
    return self._parts[name][0]

  def gaussian(self, name: str) -> dj.metrics.Gaussian:
    """Mean and covariance."""
    if name not in self._gaussians:
      moments = self._moments.get(name)
      if moments is None:
        moments = dj.metrics.moments.moments(self.features(name))
      self._gaussians[name] = moments.gaussian()
    return self._gaussians[name]


def look(
  source: dj.data.Source, num: int, network: Features, seen: Seen, batch: int
) -> Seen:
  """Fills ``seen`` from the first ``num`` images, with a progress bar.

  Raises:
    ValueError: If features are not finite.
  """
  labels = []

  def batches() -> Iterator[np.ndarray]:
    for start in range(0, num, batch):
      examples = source.gather(np.arange(start, min(start + batch, num)))
      labels.append(examples["label"])
      yield examples["image"]

  if not seen.names:
    return seen
  with tqdm.tqdm(
    total=num,
    unit="image",
    desc=f"features of {source.name}",
    disable=not sys.stderr.isatty(),
    leave=False,
  ) as bar:
    parts = dj.metrics.extract(
      network.make(seen.names), batches(), batch_size=batch, jit=network.jit
    )
    for part in parts:
      for vectors in part.values():
        _check_finite(network.name, vectors)
      seen.add(part, labels[-1])
      bar.update(len(labels[-1]))
  return seen
