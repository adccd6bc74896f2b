"""A cache: images decoded, resized and cropped once, then mapped from disk.

  CACHE/images.npy   [N, H, W, C], in the dtype of the data
  CACHE/labels.npy   int32 [N]
  CACHE/cache.json   a description; when complete, a checksum of each part
  CACHE/part-00000   while it is written: the checksum of a finished part
  CACHE/lock         of experiments.prepare, held by the one that writes

Parts are written in any order and by any number of processes; finished ones are
not written again. Read a cache with ``data.load(CACHE)``.
"""

import dataclasses
import functools
import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import sources, values

FORMAT = 1
NAME = "cache.json"
PART_BYTES = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MappedSource(sources.ArraySource):
  """A source mapped from disk, which asks for all images before it reads any.

  The system would otherwise read ahead of each image, ten times what is needed
  of a shuffled data set, and wait for one image after another.

  Attributes:
    images: The whole file of images, mapped by NumPy.
    advise: The ``madvise`` of that map.
  """

  images: np.memmap = dataclasses.field(repr=False)
  advise: Callable[[int, int, int], object] = dataclasses.field(repr=False)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    size = self.images[0].nbytes
    for start in (self.images.offset + size * np.unique(indices)).tolist():
      page = start - start % mmap.PAGESIZE
      self.advise(mmap.MADV_WILLNEED, page, start + size - page)
    return super().gather(indices)


def is_cache(path: Path) -> bool:
  """Whether a folder is a cache, complete or not."""
  return (path / NAME).is_file()


def begin(source: sources.Source, out: Path, *, asked: Any = None) -> None:
  """Makes the empty files of a cache, or continues one that was begun.

  Args:
    source: The data, with a fingerprint that identifies them.
    out: The folder, which must be new, empty, or a cache of the same data.
    asked: Further values that identify the data, as JSON.

  Raises:
    ValueError: If the folder holds something else.
    OSError: If there is no room for it.
  """
  check_place(out)
  plan = _plan(source, asked)
  if is_cache(out):
    if _identity(_read(out)["plan"]) != _identity(plan):
      raise ValueError(
        f"{out} is a cache of other data or options: name another folder, or"
        " remove it"
      )
    return
  # Rewrites what a killed start has left.
  out.mkdir(parents=True, exist_ok=True)
  shape, n = source.image_shape, len(source)
  for name, dtype, whole in (
    ("images", source.values.dtype, (n, *shape)),
    ("labels", "int32", (n,)),
  ):
    path = out / f"{name}.npy"
    np.lib.format.open_memmap(path, "w+", dtype, whole).flush()
    _reserve(path)
  _replace(out / NAME, json.dumps({"format": FORMAT, "plan": plan}, indent=1))


def check_place(out: Path) -> None:
  """Checks that a folder is new, empty, a cache, or what a killed start left.

  Raises:
    ValueError: If not.
  """
  if sources.CONTROL.search(str(out)):
    raise ValueError(f"{str(out)!r} has a control character: choose another")
  started = {"images.npy", "labels.npy", f"{NAME}.new", "lock"}
  names = {path.name for path in out.iterdir()} if out.exists() else set()
  if not (is_cache(out) or names <= started):
    raise ValueError(f"{out} holds something else: name a new folder")


def write(
  source: sources.Source,
  out: Path,
  *,
  index: int = 0,
  count: int = 1,
  progress: Callable[[int], object] = lambda done: None,
) -> None:
  """Writes the parts index, index + count, ... that are missing.

  Args:
    source: The data that the cache was begun with.
    out: The folder.
    index: The number of this process.
    count: The number of processes.
    progress: Called with the number of images of each finished part.
  """
  plan = _read(out)["plan"]
  images, labels = _arrays(out, plan, "r+")
  for k, rows in list(enumerate(_parts(plan)))[index::count]:
    marker = out / f"part-{k:05}"
    if not (marker.exists() or _is_whole(out)):
      part = source.gather(np.arange(rows.start, rows.stop))
      images[rows], labels[rows] = part["image"], part["label"]
      images.flush()
      labels.flush()
      _replace(marker, _checksum(images[rows], labels[rows]))
    progress(rows.stop - rows.start)


def finish(out: Path) -> None:
  """Marks a cache as complete, once every part is there.

  Raises:
    ValueError: If one is missing.
  """
  if _is_whole(out):
    return
  kept = _read(out)
  markers = [out / f"part-{k:05}" for k, _ in enumerate(_parts(kept["plan"]))]
  missing = sum(not marker.exists() for marker in markers)
  if missing:
    raise _unfinished(out, missing)
  kept["parts"] = [marker.read_text() for marker in markers]
  kept["fingerprint"] = _fingerprint(out, kept["plan"])
  _replace(out / NAME, json.dumps(kept, indent=1))
  for marker in markers:
    marker.unlink()


def load(path: Path, *, verify: bool | None = None) -> sources.ArraySource:
  """The data of a cache, mapped from disk.

  Args:
    path: The folder.
    verify: Whether to read everything and compare checksums; by default if it
      has at most ``sources.MAX_BYTES``.

  Returns:
    The same examples as the data themselves, with the same fingerprint.

  Raises:
    ValueError: If it is incomplete or damaged.
  """
  kept = _read(path)
  plan = kept["plan"]
  if "parts" not in kept:
    raise _unfinished(path)
  images, labels = _arrays(path, plan, "r")
  if verify or (verify is None and images.nbytes <= sources.MAX_BYTES):
    for k, rows in enumerate(_parts(plan)):
      if _checksum(images[rows], labels[rows]) != kept["parts"][k]:
        raise _damaged(path, f"images {rows.start:,} to {rows.stop - 1:,}")
  advise = getattr(images.base, "madvise", None)
  if advise is not None:  # Windows has none
    advise(mmap.MADV_RANDOM)
    kind = functools.partial(MappedSource, advise=advise)
  else:
    kind = sources.ArraySource
  return kind(
    name=plan["name"],
    image_shape=tuple(plan["image_shape"]),
    class_names=tuple(plan["class_names"]),
    fingerprint=kept["fingerprint"],
    values=values.from_json(plan["values"]),
    left_out=plan["left_out"],
    images=images,
    labels=np.asarray(labels),
  )


def _plan(source: sources.Source, asked: Any) -> dict[str, Any]:
  """Everything that a cache depends on, after a round trip through JSON."""
  size = sources.num_bytes(source.image_shape, source.values)
  plan = {
    "name": source.name,
    "examples": len(source),
    "image_shape": source.image_shape,
    "values": source.values.to_json(),
    "class_names": source.class_names,
    "left_out": source.left_out,
    "source": source.fingerprint,
    "asked": asked,
    "rows": max(1, int(PART_BYTES // size)),
  }
  return json.loads(json.dumps(plan))


def _identity(plan: dict[str, Any]) -> dict[str, Any]:
  """What may not change: the folder's name, and what else is in it, may."""
  return {k: v for k, v in plan.items() if k not in ("name", "left_out")}


def _parts(plan: dict[str, Any]) -> list[slice]:
  n, rows = plan["examples"], plan["rows"]
  return [slice(k, min(k + rows, n)) for k in range(0, n, rows)]


def _arrays(out: Path, plan: dict[str, Any], mode: Any):
  """Images and labels, checked against the plan.

  Raises:
    ValueError: If a file is damaged.
  """
  shape = (plan["examples"], *plan["image_shape"])
  found = []
  for name, want, dtype in (
    ("images", shape, plan["values"]["dtype"]),
    ("labels", shape[:1], "int32"),
  ):
    path = out / f"{name}.npy"
    try:
      array = np.lib.format.open_memmap(path, mode)
    except (OSError, ValueError) as error:  # truncated, or not an .npy
      raise _damaged(out, f"{path.name}: {sources.one_line(error)}") from error
    if array.shape != want or array.dtype != dtype:
      raise _damaged(out, f"{path.name} is {array.dtype} {list(array.shape)}")
    found.append(array)
  return found


def _fingerprint(out: Path, plan: dict[str, Any]) -> str:
  """That of the data as ``data.load`` gives them, in memory or not."""
  images, labels = _arrays(out, plan, "r")
  if images.nbytes > sources.MAX_BYTES:
    return plan["source"]
  meaning = values.from_json(plan["values"])
  names = tuple(plan["class_names"])
  return sources.in_memory(
    "", images, np.asarray(labels), names, values=meaning
  ).fingerprint


def _read(path: Path) -> dict[str, Any]:
  try:
    kept = json.loads((path / NAME).read_text())
    if kept["format"] != FORMAT:
      raise ValueError(
        f"{path} is a cache of format {kept['format']}, this version reads "
        f"{FORMAT}: prepare it again"
      )
    math.prod(kept["plan"]["image_shape"])
    return kept
  except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
    raise _damaged(path, f"{NAME}: {sources.one_line(error)}") from error


def _is_whole(path: Path) -> bool:
  return "parts" in _read(path)


def _checksum(images: np.ndarray, labels: np.ndarray) -> str:
  digest = hashlib.sha256(np.ascontiguousarray(images).data)
  digest.update(np.ascontiguousarray(labels).data)
  return digest.hexdigest()


def _reserve(path: Path) -> None:
  """Allocates the disk space of a sparse file.

  Otherwise a page for which there is no space later, when it is written through
  the memory map, ends the process without a message.

  Raises:
    OSError: If there is not enough space; the file is then removed.
  """
  if not hasattr(os, "posix_fallocate"):
    return
  try:
    with path.open("r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  except OSError as error:
    path.unlink()
    raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, text: str) -> None:
  """Writes a file atomically: others see the old or the new one."""
  new = path.with_name(f"{path.name}.new")
  with new.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  new.replace(path)


def _unfinished(path: Path, missing: int | None = None) -> ValueError:
  some = "" if missing is None else f", {missing:,} parts are missing"
  return ValueError(
    f"{path} is a cache that is not finished{some}: run the same"
    " experiments.prepare again, which goes on from there"
  )


def _damaged(path: Path, what: str) -> ValueError:
  return ValueError(
    f"{path} is a damaged cache ({what}): remove it and prepare it again"
  )
