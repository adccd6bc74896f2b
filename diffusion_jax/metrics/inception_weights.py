"""The published weights of FID's Inception network."""

import hashlib
import pathlib
import re
import urllib.request
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.metrics.inception import SIZE, Inception
from diffusion_jax.pretrained import files

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
CACHE = pathlib.Path("~/.cache/diffusion_jax/inception")
EPSILON = 1e-3  # of the batch normalisation


def load(source: pathlib.Path | None = None, *, download: bool = False) -> Any:
  """The parameters of ``Inception``.

  Args:
    source: The file (a .pth needs PyTorch, a .safetensors with the same tensors
      does not), or the folder that holds it; by default ``CACHE``.
    download: Download the file into the folder if it is missing.

  Returns:
    The parameters.

  Raises:
    ValueError: If there is no such file, or it holds other weights.
  """
  return from_published(files.read(find(source, download=download)))


def find(
  source: pathlib.Path | None = None, *, download: bool = False
) -> pathlib.Path:
  """Where the file of weights is; see ``load``."""
  path = (source or CACHE).expanduser()
  if path.is_file():
    return path
  if path.suffix in (".safetensors", *files.TORCH_SUFFIXES):
    raise ValueError(f"no file {path}: {_how_to_get()}")
  here = path / NAME
  for candidate in (here, here.with_suffix(".safetensors")):
    if candidate.is_file():
      return candidate
  if not download:
    raise ValueError(f"Inception's weights are not in {path}: {_how_to_get()}")
  return _download(here)


def _how_to_get() -> str:
  return f"download {URL} and name the file"


def _download(path: pathlib.Path) -> pathlib.Path:
  """Fetches the file; its name ends in the first digits of its SHA-256."""
  try:
    with urllib.request.urlopen(URL, timeout=60) as answer:
      content = answer.read()
  except OSError as error:
    raise ValueError(
      f"{URL} cannot be fetched ({error}); download it elsewhere and name the "
      "file"
    ) from error
  digest = hashlib.sha256(content).hexdigest()
  if not digest.startswith(path.stem.rpartition("-")[2]):
    raise ValueError(f"{URL} gave a damaged file, of SHA-256 {digest[:8]}...")
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".part")
  partial.write_bytes(content)
  partial.replace(path)
  return path


def shapes() -> dict[str, tuple[int, ...]]:
  """The tensors of the published file, by name."""
  kernels = {
    name: layer["kernel"].shape for name, layer in _abstract_params().items()
  }
  features, classes = kernels.pop("fc")
  found: dict[str, tuple[int, ...]] = {
    "fc.weight": (classes, features), "fc.bias": (classes,),
  }  # fmt: skip
  for name, (h, w, given, made) in kernels.items():
    found[f"{name}.conv.weight"] = (made, given, h, w)
    for part in ("weight", "bias", "running_mean", "running_var"):
      found[f"{name}.bn.{part}"] = (made,)
  return found


def _abstract_params() -> Mapping[str, Any]:
  """Shapes of the network's parameters."""
  images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.uint8)
  return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def from_published(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Our parameters from the published state dict.

  The normalisation gamma (x - mean) / sqrt(var + 0.001) + beta follows each
  convolution and is linear in it, so it becomes part of kernel and bias, in
  float64.

  Args:
    state: Arrays by published name.

  Returns:
    The parameters of ``Inception``.

  Raises:
    ValueError: If a tensor is missing, unexpected or has a wrong shape; the
      message names it.
  """
  state = {
    name: array
    for name, array in state.items()
    if not name.endswith("num_batches_tracked")  # counts, no weights
  }
  expected = shapes()
  for name in sorted(expected.keys() ^ state.keys()):
    what = "lacks" if name in expected else "also has"
    raise ValueError(f"these are not FID's Inception weights: it {what} {name}")
  for name, shape in expected.items():
    if state[name].shape != shape:
      raise ValueError(
        f"these are not FID's Inception weights: {name} is "
        f"{state[name].shape}, not {shape}"
      )
  layers = sorted({m[1] for m in map(_CONV.fullmatch, state) if m})
  params = {name: _folded(state, name) for name in layers}
  params["fc"] = {"kernel": np.asarray(state["fc.weight"].T, np.float32)}
  return params


_CONV = re.compile(r"(.*)\.conv\.weight")


def _folded(state: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
  """Kernel and bias of a convolution and the normalisation after it."""
  conv, gamma, beta, mean, var = (
    np.asarray(state[f"{name}.{part}"], np.float64)
    for part in (
      "conv.weight", "bn.weight", "bn.bias", "bn.running_mean",
      "bn.running_var",
    )
  )  # fmt: skip
  scale = gamma / np.sqrt(var + EPSILON)
  kernel = conv.transpose(2, 3, 1, 0) * scale  # [h, w, in, out]
  bias = beta - mean * scale
  return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
