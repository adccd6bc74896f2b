"""Files of tensors, and folders of the Hugging Face hub.

Reading never runs code from a file: .safetensors holds only numbers, and from a
pickle (.pt, .pth, .bin) only tensors are accepted.
"""

import errno
import functools
import importlib
import json
import pathlib
import pickle
import re
import struct
import warnings
from typing import Any

import numpy as np

from diffusion_jax.damage import first_line
from diffusion_jax.pretrained.layout import Tensors

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
WEIGHTS = "diffusion_pytorch_model"
# What PyTorch raises for a damaged file, besides an invalid seek.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, struct.error)
# Types of arrays that every format has.
KINDS = "dense arrays of float32, float64, float16, bfloat16, integers or bool"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a .safetensors, .pt, .pth or .bin file.

  Args:
    path: The file. All but .safetensors need PyTorch, but no GPU.

  Returns:
    Arrays by name; bfloat16 becomes float32.

  Raises:
    ValueError: If the file is truncated, holds anything but one dictionary
      of tensors, or one that NumPy has not, or a package is missing.
    OSError: If there is no such file.
  """
  with path.open("rb"):  # the system's own error for a missing file
    pass
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  if path.suffix in TORCH_SUFFIXES:
    return _read_torch(path)
  raise ValueError(
    f"{path} is no file of weights that is known; those end in "
    f".safetensors, {', '.join(TORCH_SUFFIXES)}"
  )


def write(path: pathlib.Path, tensors: Tensors) -> None:
  """Writes arrays that ``read`` reads back, in the format of the suffix.

  The file appears whole or not at all.

  Raises:
    ValueError: If the suffix is unknown, an array is of a type that the format
      has not, or a package is missing.
    OSError: If it cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f".{path.name}.new")
  refused: type[Exception] = RuntimeError  # torch's, of a full disk
  if path.suffix == ".safetensors":
    module = _safetensors(path)
    refused = _safetensor_error()
    for name, array in tensors.items():
      _check_kind(path, name, np.asarray(array))
    # The entry that diffusers looks for.
    save = functools.partial(
      module.save_file, dict(tensors), new,
      metadata={"format": "pt"},
    )  # fmt: skip
  elif path.suffix in TORCH_SUFFIXES:
    torch = _torch(path)
    state = {
      name: _tensor(torch, path, name, np.asarray(array))
      for name, array in tensors.items()
    }
    save = functools.partial(torch.save, state, new)
  else:
    raise ValueError(
      f"{path} must end in .safetensors, {', '.join(TORCH_SUFFIXES)}"
    )
  try:
    save()
    new.replace(path)
  except (refused, OSError) as error:
    new.unlink(missing_ok=True)
    raise OSError(f"{path} cannot be written: {first_line(error)}") from error


def _check_kind(path: pathlib.Path, name: str, array: np.ndarray) -> None:
  """Refuses what NumPy or PyTorch have no type for, such as float8."""
  if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
    raise ValueError(
      f"{path} cannot hold {name!r}, {array.dtype}; it holds {KINDS}"
    )


def _tensor(torch, path: pathlib.Path, name: str, array: np.ndarray) -> Any:
  """A tensor of PyTorch: a copy, which wants to own writable memory."""
  _check_kind(path, name, array)
  if array.dtype.name == "bfloat16":
    return torch.tensor(array.astype(np.float32)).bfloat16()
  return torch.tensor(array)


def _read_safetensors(path):
  _safetensors(path)
  module, found = importlib.import_module("safetensors"), {}
  try:
    with module.safe_open(path, framework="np") as file:
      for name in file.keys():  # noqa: SIM118, it is no dictionary
        try:
          array = file.get_tensor(name)
        except (AttributeError, KeyError, TypeError) as error:
          kind = file.get_slice(name).get_dtype()
          raise ValueError(
            f"{path} holds {name!r}, {kind}; what is read are {KINDS}"
          ) from error
        half = array.dtype.name == "bfloat16"
        found[name] = array.astype(np.float32) if half else array
  except module.SafetensorError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  return found


def _read_torch(path):
  torch = _torch(path)
  try:
    with warnings.catch_warnings():
      # That a pickle is of a newer protocol; what matters is refused anyway.
      warnings.simplefilter("ignore", UserWarning)
      state = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise ValueError(
      f"{path} is damaged or holds more than tensors, which could run code; "
      "it is not read"
    ) from error
  except (*DAMAGED, OSError) as error:
    # A seek before the start of a truncated file; all else is the system's.
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
      raise
    raise ValueError(
      f"{path} is truncated or no PyTorch file: {first_line(error)}"
    ) from error
  if not isinstance(state, dict):
    raise ValueError(f"{path} holds a {type(state).__name__}, not tensors")
  for name, tensor in state.items():
    if not isinstance(tensor, torch.Tensor):
      raise ValueError(
        f"{path} holds {name!r}, a {type(tensor).__name__}; a published state "
        "dict holds tensors only"
      )
  return {str(n): _array(torch, path, n, t) for n, t in state.items()}


def _array(torch, path: pathlib.Path, name: str, tensor: Any) -> np.ndarray:
  tensor = tensor.detach()
  try:  # NumPy has no bfloat16.
    half = tensor.dtype == torch.bfloat16
    return (tensor.float() if half else tensor).numpy()
  except (RuntimeError, TypeError) as error:
    kind = f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
    raise ValueError(
      f"{path} holds {name!r}, {kind}; what is read are {KINDS}"
    ) from error


def package(name: str, needed_for: object, install: str) -> Any:
  """Imports an optional package, or says how to install it."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f"{needed_for} needs {name}: pip install '{install}'"
    ) from error


def _torch(path: pathlib.Path) -> Any:
  return package("torch", path, "diffusion_jax[torch]")


def _safetensors(path: pathlib.Path) -> Any:
  return package("safetensors.numpy", path, "safetensors")


def _safetensor_error() -> type[Exception]:
  return importlib.import_module("safetensors").SafetensorError


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a .json file that holds an object.

  Raises:
    ValueError: If it does not.
    OSError: If there is no such file.
  """
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
  return content


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes a .json file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=2) + "\n")


def find(source: str) -> pathlib.Path:
  """The file or folder of a path or of a name on the hub.

  A local path comes first; the hub is asked only for an OWNER/NAME that does
  not exist locally. Its files are kept in huggingface_hub's cache, and read
  from there if there is no network.

  Args:
    source: Path, or name such as "google/ddpm-cifar10-32".

  Returns:
    The path.

  Raises:
    ValueError: If there is neither, or a package is missing.
  """
  path = pathlib.Path(source).expanduser()
  if path.exists() or path.with_name(path.name + ".index").is_file():
    return path
  if not HUB_NAME.fullmatch(source) or path.suffix in TORCH_SUFFIXES:
    raise ValueError(
      f"{source} is no file or folder, nor OWNER/NAME of a model on the hub"
    )
  hub = package(
    "huggingface_hub",
    f"{source} is not on this disk; the hub",
    "diffusion_jax[hub]",
  )
  try:
    return _download(hub, source)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{source} is neither on this disk nor in the cache, and the hub does "
      f"not give it: {first_line(error)}"
    ) from error


def _download(hub, name: str) -> pathlib.Path:
  """Downloads settings and weights: .safetensors if the model has it."""
  for suffix in (".safetensors", ".bin"):
    patterns = ["*config.json", f"*{WEIGHTS}{suffix}"]
    folder = pathlib.Path(hub.snapshot_download(name, allow_patterns=patterns))
    if any(folder.rglob(f"{WEIGHTS}{suffix}")):
      break
  return folder


def model_folder(folder: pathlib.Path) -> pathlib.Path:
  """The folder of a pipeline's network: "unet", or the top.

  Raises:
    ValueError: If neither has a config.json.
  """
  for candidate in (folder / "unet", folder):
    if (candidate / "config.json").is_file():
      return candidate
  raise ValueError(f"{folder} has no config.json, nor unet/config.json")


def weights_file(folder: pathlib.Path) -> pathlib.Path:
  """The file of weights in a network's folder.

  Raises:
    ValueError: If there is none.
  """
  for suffix in (".safetensors", ".bin"):
    path = folder / f"{WEIGHTS}{suffix}"
    if path.is_file():
      return path
  raise ValueError(f"{folder} has no {WEIGHTS}.safetensors, nor .bin")


def scheduler_file(folder: pathlib.Path) -> pathlib.Path | None:
  """The settings of a pipeline's scheduler; None if it has none."""
  for candidate in (folder / "scheduler", folder):
    path = candidate / "scheduler_config.json"
    if path.is_file():
      return path
  return None
