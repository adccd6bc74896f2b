"""Images in .tar files as webdataset writes them, read by index.

Files of one key, the path up to the first dot of its last part, are one
sample: "cats/0001.jpg" and "cats/0001.cls" or ".json". Headers are read when
the source is opened; reading an image is then one seek and one read.
"""

import collections
import io
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from diffusion_jax.data import classes, folders, pictures, sources
from diffusion_jax.data.files import File

_BLOCK = 512  # of which tar files are made
# Keys of a .json that hold the class of its sample.
_JSON_KEYS = ("label", "cls", "class")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Member(NamedTuple):
  """The position of a file in a shard."""

  shard: Path
  name: str
  offset: int
  num_bytes: int

  def read(self) -> bytes:
    """Its contents.

    Raises:
      OSError: If the shard is shorter than before.
    """
    with self.shard.open("rb") as file:
      file.seek(self.offset)
      data = file.read(self.num_bytes)
    if len(data) < self.num_bytes:
      raise OSError(f"{self.shard} ends within it")
    return data


def load(path: Path, how: folders.Decoding) -> sources.Source:
  """See ``loading.load``; the samples in the order in which they are stored."""
  left_out: collections.Counter[str] = collections.Counter()
  samples = _samples(path, left_out, how.skip_broken)
  files, stored = [], []
  for key, sample in samples.items():
    image = _image(key, sample)
    kind = None if image is None else _class(sample)
    for extension in sample.keys() - {image, kind}:
      left_out[f".{extension}" if extension else "no suffix"] += 1
    if image is None:
      continue
    member = sample[image]
    inside = PurePosixPath(member.shard.name, member.name)
    files.append(File(inside, _opener(member), member.num_bytes))
    stored.append(None if kind is None else _stored(sample[kind]))
  listed = ", ".join(
    f"{sources.visible(kind)} ({n:,})" for kind, n in sorted(left_out.items())
  )
  if not files:
    raise ValueError(
      f"no pictures in {path}: it holds {listed or 'nothing'}; pictures are"
      " .png, .jpg and what else Pillow reads"
    )
  labels, names = classes.of(str(path), stored)
  files = [
    file._replace(label=int(label))
    for file, label in zip(files, labels, strict=True)
  ]
  return folders.of_files(path, files, names, listed, how)


def _samples(
  path: Path, left_out: collections.Counter[str], skip_broken: bool
) -> dict[str, dict[str, Member]]:
  """The members of all shards by key, then by extension.

  Raises:
    ValueError: If a shard is damaged, or has a member twice.
  """
  damaged: list[str] = []
  samples: dict[str, dict[str, Member]] = {}
  for shard in shards(path):
    for member in _members(shard, damaged):
      parts = PurePosixPath(member.name).parts
      if any(part[0] == "." or part == "__MACOSX" for part in parts):
        left_out["hidden"] += 1
        continue
      key, extension = split_name(member.name)
      sample = samples.setdefault(f"{shard}/{key}", {})
      if extension in sample:
        raise ValueError(
          f"{shard} holds {sources.visible(member.name)} twice: write each key"
          " once"
        )
      sample[extension] = member
  if damaged and not skip_broken:
    raise sources.Unfit(
      f"{sources.some(damaged)}; download or write it again", "skip_broken"
    )
  if damaged:
    warnings.warn(
      f"left out all that follows: {sources.some(damaged)}", stacklevel=5
    )
  return samples


def shards(path: Path) -> list[Path]:
  """The files of a pattern such as shards-{000000..000009}.tar.

  Raises:
    ValueError: If one is missing, or the pattern counts down.
  """
  found = [Path(name) for name in _expanded(str(path))]
  missing = [str(one) for one in found if not one.is_file()]
  if missing and len(found) == 1:
    raise ValueError(f"no file {path}: {sources.ACCEPTED}")
  if missing:
    raise ValueError(
      f"{len(missing):,} of the {len(found):,} shards of {path} are missing:"
      f" {sources.some(missing, 3)}; download them, or name what is there"
    )
  return found


def _expanded(text: str) -> list[str]:
  """The names of a pattern, zeros in front kept.

  >>> _expanded("a-{08..10}.tar")
  ['a-08.tar', 'a-09.tar', 'a-10.tar']
  """
  found = _RANGE.search(text)
  if found is None:
    return [text]
  first, last = map(int, found.groups())
  if first > last:
    raise ValueError(f"{text} counts from {first} to {last}: must count up")
  before, after = text[: found.start()], _expanded(text[found.end() :])
  digits = len(found[1])
  return [
    f"{before}{k:0{digits}}{rest}"
    for k in range(first, last + 1)
    for rest in after
  ]


def _members(shard: Path, damaged: list[str]) -> Iterator[Member]:
  """The files of a shard; adds a shard that ends too early to ``damaged``."""
  k, last = 0, ""
  try:
    with shard.open("rb") as file:
      if file.read(2) == b"\x1f\x8b":
        raise tarfile.ReadError("it is compressed by gzip: decompress it")
    with tarfile.open(shard, "r:") as archive:
      size = shard.stat().st_size
      for info in archive:
        if info.offset_data + info.size > size:
          raise tarfile.ReadError(f"{info.name} goes beyond its end")
        k, last = k + 1, info.name
        if info.isfile():
          yield Member(shard, info.name, info.offset_data, info.size)
      # Python's tarfile takes a header that is damaged for the end.
      with shard.open("rb") as file:
        file.seek(archive.offset)
        if any(file.read(_BLOCK)):
          raise tarfile.ReadError("its header is damaged")
  except (tarfile.TarError, OSError) as error:
    after = f" after {last}" if last else ""
    why = sources.one_line(error)
    damaged.append(
      sources.visible(f"{shard} is damaged at member {k + 1}{after} ({why})")
    )


def split_name(name: str) -> tuple[str, str]:
  """The key of a member and its extension, as webdataset splits them.

  >>> split_name("cats/0001.mask.png")
  ('cats/0001', 'mask.png')
  """
  path = PurePosixPath(name)
  stem, _, extension = path.name.partition(".")
  return str(path.with_name(stem or path.name)), extension.lower()


def _image(key: str, sample: dict[str, Member]) -> str | None:
  """The extension of a sample's image; None if it has none.

  Raises:
    ValueError: If it has several.
  """
  known = pictures.extensions()
  found = [e for e in sample if f".{e.rpartition('.')[2]}" in known]
  plain = [extension for extension in found if "." not in extension] or found
  if len(plain) > 1:
    raise ValueError(
      f"the sample {sources.visible(key)} has several pictures"
      f" ({', '.join(plain)}): keep one"
    )
  return plain[0] if plain else None


def _class(sample: dict[str, Member]) -> str | None:
  """The file of a sample with its class; None if there is none."""
  if "cls" in sample:
    return "cls"
  if "json" in sample and _stored(sample["json"]) is not None:
    return "json"
  return None


def _stored(member: Member) -> Any:
  """The class in a .cls or .json.

  Raises:
    ValueError: If it cannot be read.
  """
  try:
    text = member.read().decode()
    if not member.name.lower().endswith(".json"):
      return text
    fields = json.loads(text)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"cannot read {member.shard.name}/{sources.visible(member.name)}:"
      f" {sources.one_line(error)}; write it again"
    ) from error
  if not isinstance(fields, dict):
    return None
  found = (fields.get(key) for key in _JSON_KEYS)
  # Tables of floats, as pandas writes them, have 1.0 for 1.
  found = (
    int(one) if isinstance(one, float) and one.is_integer() else one
    for one in found
  )
  return next((one for one in found if isinstance(one, int | str)), None)


def _opener(member: Member) -> Callable[[], IO[bytes]]:
  return lambda: io.BytesIO(member.read())
