"""Statistics of data in files: published reference batches, and our own."""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from diffusion_jax.metrics.moments import Gaussian

# Features, and the names of their mean and covariance in a file.
KEYS = {"2048": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
IMAGES = "arr_0"


class Reference(NamedTuple):
  """The statistics of data in a file.

  Attributes:
    gaussians: Mean and covariance by feature name, those of Inception's "2048"
      and "spatial" that the file has.
    has_images: Whether it also has the images, which ``data.load`` reads.
    fingerprint: First 16 digits of the file's SHA-256.
  """

  gaussians: dict[str, Gaussian]
  has_images: bool
  fingerprint: str


def read_reference(path: str | os.PathLike[str]) -> Reference:
  """Reads an .npz of statistics, or one of OpenAI's reference batches.

  The former has mu and sigma, as pytorch-fid writes them; the latter arr_0,
  images in uint8, and often mu, sigma, mu_s and sigma_s.

  Raises:
    ValueError: If the file is damaged or has none of these, or if their shapes
      do not fit.
    OSError: If there is no such file.
  """
  path = pathlib.Path(path)
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      names = list(arrays)
      pairs = {
        feature: (arrays[mean], arrays[cov])
        for feature, (mean, cov) in KEYS.items()
        if mean in names and cov in names
      }
  except (zipfile.BadZipFile, EOFError, ValueError, TypeError) as error:
    raise ValueError(f"{path} is damaged or no .npz: {error}") from error
  found = {name: _gaussian(path, *pair) for name, pair in pairs.items()}
  has_images = bool({IMAGES, "images"} & set(names))
  if not found and not has_images:
    raise ValueError(
      f"{path} holds {names}: a reference has {IMAGES} (uint8 pictures), or mu "
      "and sigma, or both"
    )
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return Reference(found, has_images, digest[:16])


def _gaussian(path, mean: np.ndarray, cov: np.ndarray) -> Gaussian:
  """Mean and covariance of a file, checked."""
  mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
  if mean.ndim != 1 or cov.shape != 2 * mean.shape:
    raise ValueError(
      f"{path} has a mean of shape {mean.shape} and a covariance of {cov.shape}"
      ": must be (D,) and (D, D)"
    )
  if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise ValueError(f"{path} has statistics that are not finite")
  return Gaussian(mean, cov)


def write_reference(
  path: str | os.PathLike[str], gaussians: Mapping[str, Gaussian]
) -> None:
  """Writes an .npz that ``read_reference`` and pytorch-fid read.

  Args:
    path: The file.
    gaussians: Mean and covariance by feature name, see ``KEYS``.

  Raises:
    ValueError: If a feature is not one of Inception's.
  """
  if unknown := sorted(set(gaussians) - set(KEYS)):
    raise ValueError(f"feature {unknown[0]!r} is not one of {', '.join(KEYS)}")
  arrays = {}
  for feature, gaussian in gaussians.items():
    arrays |= dict(zip(KEYS[feature], gaussian, strict=True))
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with open(path, "wb") as file:  # NumPy would add .npz to another name
    np.savez(file, **arrays)
