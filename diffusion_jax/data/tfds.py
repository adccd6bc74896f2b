"""Sources from TensorFlow Datasets, read without TensorFlow.

A data set is prepared once, in a child process that needs TensorFlow, and
stored as array_record; afterwards TFDS reads it with NumPy alone.
"""

import functools
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import pictures, sources, views


def load(
  name: str,
  split: str,
  size: tuple[int, int] | None,
  channels: int | None,
  random_crop: bool,
  data_dir: str | os.PathLike[str] | None,
  max_bytes: int,
) -> sources.Source:
  """See ``sources.load``; prepares the data set if it is not."""
  import tensorflow_datasets as tfds

  folder = None if data_dir is None else os.path.expanduser(data_dir)
  builder = _builder(name, folder)
  if not _is_prepared(builder):
    _prepare(name, folder, builder)
    builder = _builder(name, folder)
    if not _is_prepared(builder):
      raise ValueError(
        f"{name} was prepared, but is not in {builder.data_path}: give its"
        " full name and version"
      )
  formats = {kind.value for kind in builder.info.available_file_formats()}
  if "array_record" not in formats:
    raise sources.Unfit(
      f"{name} in {builder.data_path} is prepared as {' '.join(formats)},"
      " which has no random access: move that folder away and run the same"
      " command again, which prepares it from what is downloaded",
      "data_dir",
    )

  image_key, label_key = _keys(name, builder.info.features)
  skip = {image_key: tfds.decode.SkipDecoding()}
  try:
    data = builder.as_data_source(
      split, decoders=skip, file_format="array_record"
    )
  except (ValueError, AssertionError) as error:
    raise ValueError(f"{name}: {sources.one_line(error)}") from error
  shape = _shape(name, builder.info.features[image_key], size, channels)
  full_name = builder.info.full_name
  names = builder.info.features[label_key].names if label_key else ()
  read = functools.partial(_read, data, image_key, label_key, size, shape)
  source = sources.LazySource(
    name=f"{full_name} {split}",
    image_shape=shape,
    class_names=tuple(names),
    fingerprint=sources.fingerprint(full_name, split, len(data), shape),
    read=read,
    length=len(data),
    max_bytes=max_bytes,
  )
  return views.random_crops(source, read) if random_crop else source


def _builder(name: str, data_dir: str | None) -> Any:
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=data_dir)
  except (ValueError, AssertionError, ImportError) as error:
    known = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in known:
      raise sources.unknown(name, known) from error
    raise ValueError(f"{name}: {sources.one_line(error)}") from error


def _is_prepared(builder: Any) -> bool:
  # The first test is only there because the second one warns.
  return builder.data_path.exists() and builder.is_prepared()


def _prepare(name: str, data_dir: str | None, builder: Any) -> None:
  """Runs prepare.py in a child process.

  Raises:
    ValueError: If TensorFlow is not installed, or the child fails.
  """
  urls: dict[str, Any] = builder.url_infos or {}
  total = sum(info.size for info in urls.values()) / 2**20
  amount = f"{total:.0f} MiB" if urls else "what it needs"
  if importlib.util.find_spec("tensorflow") is None:
    raise ValueError(
      f"{name} is not prepared in {builder.data_dir_root}, and preparing it"
      " needs TensorFlow (reading does not): pip install -e '.[tfds]', then"
      f" run the same command again, which downloads {amount}"
    )
  script = Path(__file__).with_name("prepare.py")
  # -P keeps this folder off the child's path, where it would hide modules.
  child = subprocess.run(
    [sys.executable, "-P", str(script), name, data_dir or ""],
    stdout=subprocess.PIPE,
    text=True,
    env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
    check=False,
  )
  if child.returncode == 0:
    return
  marked = [x for x in child.stdout.splitlines() if x.startswith("error: ")]
  reason = f"the process for it ended with code {child.returncode}"
  if marked:
    reason = marked[-1].removeprefix("error: ")[:400]
  raise ValueError(f"cannot prepare {name}: {reason}{_by_hand(urls, builder)}")


def _by_hand(urls: Mapping[str, Any], builder: Any) -> str:
  """What to do if the machine has no network."""
  files = [url for url, info in urls.items() if info.filename]
  if not files:
    return "; see the messages above, then run the same command again"
  listed = " ".join(files[:3])
  more = f" and {len(files) - 3} more" if len(files) > 3 else ""
  return (
    f"; if this machine cannot download, put {listed}{more} into"
    f" {builder.data_dir_root}/downloads/manual and run the same command again"
  )


def _keys(name: str, features: Any) -> tuple[str, str | None]:
  """Names of the image and of its label (None if there is none)."""
  import tensorflow_datasets as tfds

  items = dict(features.items()) if hasattr(features, "items") else {}
  images = [
    key
    for key, feature in items.items()
    if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
  ]
  labels = [
    key
    for key, feature in items.items()
    if isinstance(feature, tfds.features.ClassLabel)
  ]
  image = "image" if "image" in images else images[0] if images else None
  if image is None or (image != "image" and len(images) > 1):
    raise ValueError(
      f"{name} has the features {sorted(items)}: need one 8-bit picture,"
      " named image if there are several; choose another data set"
    )
  label = labels[0] if len(labels) == 1 else None
  return image, "label" if "label" in labels else label


def _shape(
  name: str, feature: Any, size: tuple[int, int] | None, channels: int | None
) -> tuple[int, int, int]:
  height, width, stored = feature.shape
  if size is not None:
    height, width = size
  if height is None or width is None:
    raise sources.Unfit(
      f"{name} has pictures of many sizes, which must become one", "size"
    )
  return height, width, channels or (1 if stored == 1 else 3)


def _read(
  data: Any,
  image_key: str,
  label_key: str | None,
  size: tuple[int, int] | None,
  shape: tuple[int, int, int],
  index: int,
  words: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
  """Image and label of an example."""
  example = data[index]
  # Decoded here and not by TFDS, which takes OpenCV where that is installed:
  # JPEG pixels would then depend on the machine.
  picture = pictures.decode(io.BytesIO(example[image_key]))
  image = pictures.to_array(picture, size, shape[2], words)
  return image, int(example[label_key]) if label_key else 0
