"""Random crops: the published ones, and drawn like all else of a batch."""

import math

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data import pictures


def noise(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def published(picture, size, words):
  """Guided Diffusion's random crop, its three draws from ``words``."""
  scale, row, column = map(int, words)
  least, most = size, math.ceil(size / 0.8)
  side = least + scale % (most - least + 1)
  while min(picture.size) >= 2 * side:
    half = tuple(n // 2 for n in picture.size)
    picture = picture.resize(half, Image.Resampling.BOX)
  factor = side / min(picture.size)
  picture = picture.resize(
    tuple(round(n * factor) for n in picture.size), Image.Resampling.BICUBIC
  )
  array = np.asarray(picture)
  top = row % (array.shape[0] - size + 1)
  left = column % (array.shape[1] - size + 1)
  return array[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(90, 70), (33, 200), (16, 16), (9, 12)])
def test_a_random_crop_is_the_published_one(shape):
  picture = Image.fromarray(noise(*shape))
  for words in np.random.default_rng(1).integers(0, 2**63, (50, 3), np.uint64):
    got = pictures.random_crop(picture, (16, 16), words)
    np.testing.assert_array_equal(got, published(picture, 16, words))


def test_crops_come_from_everywhere():
  # A ramp says where a crop was cut: 20 columns, of which 8 to 10 are 8.
  ramp = np.broadcast_to(np.arange(20, dtype=np.uint8) * 10, (10, 20))
  words = np.random.default_rng(2).integers(0, 2**63, (400, 3), np.uint64)
  crops = [
    np.asarray(pictures.random_crop(Image.fromarray(ramp), (8, 8), w), float)
    for w in words
  ]
  spans = {round(c[0].max() - c[0].min()) for c in crops}
  assert len(spans) >= 3  # of 8, 9 and 10 columns
  assert min(c.min() for c in crops) < 10 and max(c.max() for c in crops) > 180


def test_crops_need_not_be_square():
  picture = Image.fromarray(noise(40, 60))
  for words in np.random.default_rng(3).integers(0, 2**63, (20, 3), np.uint64):
    assert pictures.random_crop(picture, (12, 20), words).size == (20, 12)


@pytest.fixture(params=["folder", "array"])
def name(request, tmp_path):
  images = np.stack([noise(20, 24, seed) for seed in range(6)])
  if request.param == "array":
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6))
    return tmp_path / "a.npz"
  for k, image in enumerate(images):
    (tmp_path / f"{k}").mkdir()
    Image.fromarray(image).save(tmp_path / f"{k}" / "a.png")
  return tmp_path


def test_visits_are_cut_anew_and_measured_pictures_are_not(name):
  centre = data.load(name, size=8)
  source = data.load(name, size=8, random_crop=True)
  assert source.fingerprint == centre.fingerprint
  every = np.arange(6)
  for a, b in zip(source, centre, strict=True):
    np.testing.assert_array_equal(a["image"], b["image"])
  options = {"batch_size": 6, "seed": 0, "flip": True}
  plain, cropped = (data.batches(s, **options) for s in (centre, source))
  seen = []
  for step in range(3):
    # The order is what it was without.
    labels = cropped[step]["label"]
    np.testing.assert_array_equal(labels, plain[step]["label"])
    np.testing.assert_array_equal(np.sort(labels), every)
    seen.append(cropped[step]["image"][np.argsort(labels)])
  assert (seen[0] != seen[1]).any(axis=(1, 2, 3)).all()
  assert (seen[1] != seen[2]).any(axis=(1, 2, 3)).all()
  # A function of seed and step, by parts as whole, of some as of all.
  again = data.batches(source, **options)
  np.testing.assert_array_equal(again[2]["image"], cropped[2]["image"])
  half = data.batches(source, **options, process_index=1, process_count=2)
  np.testing.assert_array_equal(half[1]["image"], cropped[1]["image"][3:])
  rest, held = data.hold_out(source, 2)
  np.testing.assert_array_equal(held[0]["image"], centre[1]["image"])
  few = data.batches(rest, batch_size=3, seed=0)
  assert (few[0]["image"] != few[1]["image"]).any()


def test_crops_need_a_size(name):
  with pytest.raises(ValueError, match="random_crop cuts .* set size, such as"):
    data.load(name, random_crop=True)
