"""Caches: what decoding gives, whole or refused."""

import dataclasses
import errno
import json
import mmap
import os

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data import cache

RNG = np.random.default_rng(0)


@pytest.fixture
def pictures(tmp_path):
  """A folder of two classes, of pictures of several sizes, some of 16 bits."""
  for k in range(7):
    folder = tmp_path / "pictures" / "ab"[k % 2]
    folder.mkdir(parents=True, exist_ok=True)
    shape = (9 + k, 12)
    wide = RNG.integers(0, 2**16, shape, np.uint16)
    grey = RNG.integers(0, 2**8, shape, np.uint8)
    Image.fromarray(wide if k % 3 else grey).save(folder / f"{k}.png")
  return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  """Two pictures of 16 bits a part, or four of 8."""
  monkeypatch.setattr(cache, "PART_BYTES", 300)


def opened(pictures, **options):
  return data.load(
    pictures, size=8, channels=1, max_bytes=0, **{"dtype": "uint16", **options}
  )


def prepare(source, out, **options):
  cache.begin(source, out, **options)
  cache.write(source, out)
  cache.finish(out)


def test_all_images_are_asked_for_before_one_is_read(tmp_path):
  images = RNG.integers(0, 2**8, (40, 50, 50, 3), np.uint8)
  out = tmp_path / "cache"
  prepare(data.sources.in_memory("x", images, np.zeros(40, np.int32), ()), out)
  source = data.load(out)
  asked = []
  source = dataclasses.replace(source, advise=lambda *page: asked.append(page))
  rows = np.array([33, 2, 33, 17])
  np.testing.assert_array_equal(source.gather(rows)["image"], images[rows])
  assert {how for how, _, _ in asked} == {mmap.MADV_WILLNEED}
  header = (out / "images.npy").stat().st_size - images.nbytes
  for row, (_, start, length) in zip((2, 17, 33), asked, strict=True):
    assert start % mmap.PAGESIZE == 0
    first = header + row * images[0].nbytes
    assert first - mmap.PAGESIZE < start <= first
    assert start + length == first + images[0].nbytes


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_cache_is_decoding_bit_for_bit(pictures, tmp_path, dtype):
  out = tmp_path / "cache"
  prepare(opened(pictures, dtype=dtype), out)
  truth = data.load(pictures, size=8, channels=1, dtype=dtype)
  source = data.load(out)
  every = np.arange(7)
  for key, array in truth.gather(every).items():
    got = source.gather(every)[key]
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)
  # A run on the folder goes on with its cache.
  for name in ("fingerprint", "image_shape", "class_names", "values", "name"):
    assert getattr(source, name) == getattr(truth, name)
  assert not list(out.glob("part-*"))
  assert data.load(out, size=8, channels=1, dtype=dtype).fingerprint


def test_parts_of_processes_are_one_cache_and_resume(pictures, tmp_path):
  one, other = tmp_path / "one", tmp_path / "other"
  source = opened(pictures)
  prepare(source, one)
  cache.begin(source, other)
  cache.write(source, other, index=1, count=2)
  with pytest.raises(ValueError, match="not finished, 2 parts are missing"):
    cache.finish(other)
  with pytest.raises(ValueError, match="not finished: run the same"):
    data.load(other)
  there = sorted(path.name for path in other.glob("part-*"))
  assert there == ["part-00001", "part-00003"]

  class Counting:
    """Counts the pictures that are decoded."""

    seen = 0

    def gather(self, indices):
      self.seen += len(indices)
      return source.gather(indices)

  counting = Counting()
  cache.begin(source, other)
  done = []
  cache.write(counting, other, progress=done.append)
  assert counting.seen == 4
  assert sum(done) == 7
  cache.finish(other)
  for name in ("images.npy", "labels.npy", cache.NAME):
    assert (one / name).read_bytes() == (other / name).read_bytes()
  # Once it is whole nothing is read.
  prepare(source, other)
  cache.write(counting, other)
  assert counting.seen == 4


def test_what_a_killed_start_left_is_written_anew(pictures, tmp_path):
  out = tmp_path / "cache"
  out.mkdir()
  (out / "images.npy").write_bytes(b"half")
  prepare(opened(pictures), out)
  assert len(data.load(out)) == 7


def test_a_cache_goes_on_inside_its_folder_and_after_it_was_renamed(pictures):
  out = pictures / "cache"
  cache.begin(opened(pictures), out)
  moved = pictures.rename(pictures.with_name("moved"))
  source = opened(moved)
  assert source.left_out  # the cache's own files
  prepare(source, moved / "cache")
  assert len(data.load(moved / "cache")) == 7


def flip(path, offset=-1):
  content = bytearray(path.read_bytes())
  content[offset] ^= 1
  path.write_bytes(content)


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def edit(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES = {
  "an image": (lambda out: flip(out / "images.npy"), r"\(images 6 to 6\)"),
  "a label": (lambda out: flip(out / "labels.npy", -28), r"\(images 0 to 0\)"),
  "cut": (lambda out: cut(out / "images.npy"), "damaged cache .images.npy"),
  "gone": (lambda out: (out / "labels.npy").unlink(), "labels.npy"),
  "other": (lambda out: np.save(out / "labels.npy", np.zeros(3)), "float64"),
  "json": (lambda out: cut(out / cache.NAME), "damaged cache .cache.json"),
  "format": (lambda out: edit(out / cache.NAME, format=9), "format 9, this"),
  "no plan": (lambda out: edit(out / cache.NAME, plan={}), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_noticed(name, pictures, tmp_path, monkeypatch):
  monkeypatch.setattr(cache, "PART_BYTES", 1)
  damage, message = DAMAGES[name]
  out = tmp_path / "cache"
  prepare(opened(pictures), out)
  damage(out)
  with pytest.raises(ValueError, match=message) as error:
    data.load(out)
  assert "\n" not in str(error.value)


def test_other_data_take_another_folder(pictures, tmp_path):
  out = tmp_path / "cache"
  prepare(opened(pictures), out, asked={"size": 8})
  with pytest.raises(ValueError, match="a cache of other data or options"):
    cache.begin(opened(pictures, dtype="uint8"), out, asked={"size": 8})
  with pytest.raises(ValueError, match="a cache of other data or options"):
    cache.begin(opened(pictures), out, asked={"size": 9})
  with pytest.raises(ValueError, match="holds something else"):
    cache.begin(opened(pictures), pictures)


@pytest.mark.parametrize(
  "options",
  [{"size": 4}, {"channels": 3}, {"dtype": "uint8"}, {"range": (0, 4095)},
   {"size": 8, "random_crop": True}],
)  # fmt: skip
def test_what_is_prepared_is_not_changed(options, pictures, tmp_path):
  out = tmp_path / "cache"
  prepare(opened(pictures), out)
  with pytest.raises(ValueError, match="prepare it again"):
    data.load(out, **options)


def test_no_room_is_said_before_anything_is_decoded(
  pictures, tmp_path, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  out = tmp_path / "cache"
  with monkeypatch.context() as patch:
    patch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
      OSError, match=r"No space left on device: '.*images.npy"
    ):
      cache.begin(opened(pictures), out)
  assert not list(out.iterdir())
  prepare(opened(pictures), out)  # goes on once there is room
  with pytest.raises(ValueError, match="has a control character"):
    cache.begin(opened(pictures), tmp_path / "a\nb")
