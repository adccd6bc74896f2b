"""Values: 8 and 16 bits, floats; to a network and back."""

import re
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import bound, data, images, likelihood

RNG = np.random.default_rng(0)
CT = data.values.of("int16", (-1024, 3071))


def save(path, array):
  np.save(path, array)
  return str(path)


# ------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
  "values",
  [data.values.BYTES, data.values.of("uint16"), CT],
  ids=["uint8", "uint16", "int16"],
)
def test_every_level_comes_back(values):
  stored = np.arange(values.low, values.high + 1).astype(values.dtype)
  assert len(stored) == values.levels
  x = values.floats(stored)
  assert x.dtype == np.float32
  np.testing.assert_array_equal(x[[0, -1]], [-1, 1])
  np.testing.assert_allclose(np.diff(x), 2 / (values.levels - 1), rtol=0.01)
  restored = values.restore(x)
  assert restored.dtype == stored.dtype
  np.testing.assert_array_equal(restored, stored)


def test_bytes_are_what_they_were():
  stored = np.arange(256, dtype=np.uint8)
  values, x = data.values.BYTES, images.from_uint8(stored)
  np.testing.assert_array_equal(values.floats(stored), x)
  noisy = np.float32(x + RNG.uniform(-0.5, 0.5, 256))
  for floor, rule in ((False, "round"), (True, "floor")):
    np.testing.assert_array_equal(
      values.restore(noisy, floor=floor), images.to_uint8(noisy, rule)
    )


def test_floats_have_a_range_or_a_mean_and_std():
  stored = RNG.uniform(200, 300, (5, 2, 2, 1)).astype(np.float32)
  kelvin = data.values.of("float32", (200, 300))
  np.testing.assert_allclose(
    kelvin.floats(stored), (stored - 250) / 50, atol=1e-6
  )
  np.testing.assert_allclose(kelvin.restore(kelvin.floats(stored)), stored)
  assert kelvin.restore(np.array([7.0])) == 300
  free = data.values.of("float32", mean=250, std=10)
  np.testing.assert_allclose(
    free.floats(stored), (stored - 250) / 10, rtol=1e-6
  )
  assert free.restore(np.array([7.0])) == 320
  assert kelvin.levels is free.levels is None


def test_values_outlive_json():
  for values in (
    data.values.BYTES,
    CT,
    data.values.of("float64", mean=1, std=2),
  ):
    assert data.values.from_json(values.to_json()) == values
  assert data.values.from_json(None) == data.values.BYTES
  with pytest.raises(ValueError, match="damaged"):
    data.values.from_json({"dtype": "uint8", "gamma": 2})


# --------------------------------------------------------------- likelihood


@pytest.mark.parametrize("levels", [2, 256, 65_536])
def test_the_probabilities_of_all_levels_add_up_to_one(levels):
  with jax.enable_x64(True):
    x0 = jnp.asarray(2 * np.arange(levels) / (levels - 1) - 1)[None]
    log_prob = bound.discretised_log_prob(
      x0, 0.2, np.log(0.3), cdf="erf", levels=levels
    )
    np.testing.assert_allclose(jnp.exp(log_prob).sum(), 1, rtol=1e-9)


def test_a_decoder_that_knows_nothing_pays_for_every_bit():
  # A wide Gaussian has the density 1 / (sqrt(2 pi) std) everywhere.
  density = -np.log2(np.sqrt(2 * np.pi) * 2)
  with jax.enable_x64(True):
    for levels in (256, 65_536):
      x0 = jnp.zeros((1, 8)) + 1 / (levels - 1)
      log_prob = bound.discretised_log_prob(
        x0, 0.0, np.log(2.0), cdf="erf", levels=levels
      )
      want = density - likelihood.bits_of_a_bin(levels)
      np.testing.assert_allclose(log_prob / np.log(2), want, atol=1e-4)


# ------------------------------------------------------------------- files


def test_arrays_of_16_bits_train_in_their_own_levels(tmp_path):
  stored = RNG.integers(0, 2**16, (6, 8, 8, 5), np.uint16)
  source = data.load(save(tmp_path / "a.npy", stored))
  assert source.image_shape == (8, 8, 5)
  assert source.values.levels == 2**16
  np.testing.assert_array_equal(source[2]["image"], stored[2])
  batch = data.batches(source, batch_size=6, seed=0)[0]["image"]
  back = source.values.restore(batch)
  assert sorted(map(bytes, back)) == sorted(map(bytes, stored))
  assert ", uint16 0 to 65535" in data.summary(source)
  half, _ = data.hold_out(source, 2)
  assert half.values == source.values


def test_what_is_shown_is_of_bytes(tmp_path):
  stored = np.linspace(0, 65_535, 16, dtype=np.uint16).reshape(1, 4, 4, 1)
  shown = data.shown(data.load(save(tmp_path / "a.npy", stored)))
  assert shown.values == data.values.BYTES
  np.testing.assert_array_equal(
    shown[0]["image"].ravel(), np.arange(0, 256, 17)
  )
  digits = data.load("digits")
  assert data.shown(digits) is digits


def test_the_range_is_of_the_fingerprint_and_bytes_keep_theirs(tmp_path):
  stored = RNG.integers(0, 200, (3, 4, 4, 1), np.uint8)
  path = save(tmp_path / "a.npy", stored)
  plain, narrow = data.load(path), data.load(path, range=(0, 200))
  zeros = np.zeros(3, np.int32)
  assert plain.fingerprint == data.sources.fingerprint(stored, zeros)
  assert narrow.fingerprint != plain.fingerprint
  assert narrow.values.levels == 201


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_wide_values_are_resized_within_their_range(dtype, tmp_path):
  stored = (RNG.uniform(0, 1, (2, 8, 8, 2)) * 1000).astype(dtype)
  source = data.load(save(tmp_path / "a.npy", stored), size=4, range=(0, 1000))
  got = source.gather(np.arange(2))["image"]
  assert got.dtype == dtype
  # Halving is the mean of boxes.
  want = stored.reshape(2, 4, 2, 4, 2, 2).astype(float).mean(axis=(2, 4))
  np.testing.assert_allclose(
    got, want, atol=0.51 if dtype == "uint16" else 1e-3
  )


def picture(path, array, **options):
  Image.fromarray(array).save(path, **options)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_pictures_of_16_bits_are_read_in_full(tmp_path, suffix):
  wide = RNG.integers(0, 2**16, (5, 4), np.uint16)
  picture(tmp_path / f"a.{suffix}", wide)
  picture(tmp_path / "b.png", np.full((5, 4), 200, np.uint8))
  source = data.load(tmp_path, dtype="uint16")
  np.testing.assert_array_equal(source[0]["image"][..., 0], wide)
  np.testing.assert_array_equal(source[1]["image"], 257 * 200)
  lazy = data.load(
    tmp_path, dtype="uint16", size=(5, 4), channels=1, max_bytes=0
  )
  np.testing.assert_array_equal(lazy[0]["image"], source[0]["image"])
  # And as bytes where nothing else is asked for, as ever.
  want = np.rint(wide / 257)
  np.testing.assert_array_equal(data.load(tmp_path)[0]["image"][..., 0], want)


def test_float_tiffs_have_a_range(tmp_path):
  stored = RNG.uniform(-3, 5, (4, 6)).astype(np.float32)
  picture(tmp_path / "a.tiff", stored)
  source = data.load(tmp_path, dtype="float32", range=(-3, 5))
  np.testing.assert_array_equal(source[0]["image"][..., 0], stored)
  with pytest.raises(ValueError, match="outside the range -1 to 1"):
    data.load(tmp_path, dtype="float32", range=(-1, 1))
  stored[1, 2] = np.nan
  picture(tmp_path / "a.tiff", stored)
  with pytest.raises(ValueError, match="a.tiff: it has 1 values that are NaN"):
    data.load(tmp_path, dtype="float32", range=(-3, 5))


def test_colour_of_16_bits_is_refused(tmp_path):
  # Pillow cannot write one.
  def chunk(kind, content):
    whole = kind + content
    return (
      struct.pack(">I", len(content))
      + whole
      + struct.pack(">I", zlib.crc32(whole))
    )

  header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
  (tmp_path / "a.png").write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(2 * (b"\0" + 12 * b"\x80")))
    + chunk(b"IEND", b"")
  )
  assert data.load(tmp_path)[0]["image"].tolist() == [[[128] * 3] * 2] * 2
  with pytest.raises(ValueError, match="RGB;16B, 16-bit colour"):
    data.load(tmp_path, dtype="uint16")


FLOATS = np.linspace(-2, 2, 32, dtype=np.float32).reshape(2, 4, 4, 1)
NAN = np.where(FLOATS.max() == FLOATS, np.nan, FLOATS)
BAD = {
  "no range": (FLOATS, {}, "whose range is not known: name it as range="),
  "outside": (FLOATS, {"range": (-1, 1)}, "outside the range -1 to 1"),
  "reversed": (FLOATS, {"range": (2, -2)}, "first must be below the second"),
  "nan": (NAN, {"range": (-2, 2)}, "1 values that are NaN or infinite"),
  "inf": (
    np.where(FLOATS > 1, np.inf, FLOATS),
    {"mean": 0, "std": 1},
    "NaN or infinite",
  ),
  "12 bits": (
    np.full((2, 4, 4, 1), 5000, np.uint16),
    {"range": (0, 4095)},
    "values from 5000 to 5000, outside",
  ),
  "both": (FLOATS, {"range": (-2, 2), "mean": 0, "std": 1}, "either the range"),
  "mean alone": (FLOATS, {"mean": 0}, "or mean and std"),
  "std 0": (FLOATS, {"mean": 0, "std": 0}, "the latter above 0"),
  "empty": (FLOATS, {"range": (1, 1)}, "must be below the second"),
  "three": (FLOATS, {"range": (0, 1, 2)}, "must be two numbers"),
  "halves": (
    np.zeros((2, 4, 4, 1), np.uint8),
    {"range": (0, 0.5)},
    "two integers",
  ),
  "int64": (FLOATS.astype(int), {"range": (-2, 2)}, "are int64: must be one"),
  "dtype": (FLOATS, {"dtype": "uint16"}, "arrays have theirs"),
}


def test_the_last_of_many_images_is_looked_at(monkeypatch):
  monkeypatch.setattr(data.values, "_CHUNK", 16)
  values = data.values.of("float32", (-2, 2))
  values.check(FLOATS, "it")
  with pytest.raises(ValueError, match="1 values .* among images 1 to 1"):
    values.check(NAN, "it")


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_one_line(name, tmp_path):
  array, options, message = BAD[name]
  path = save(tmp_path / "a.npy", array)
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    data.load(path, **options)
  assert "\n" not in str(error.value)


def test_samples_that_are_no_numbers_are_not_written():
  for values in (data.values.of("uint16"), data.values.of("float32", (0, 1))):
    with pytest.raises(FloatingPointError, match="1 of the 2 values"):
      values.restore(np.array([0.0, np.nan]))


def test_what_has_bytes_takes_no_other_meaning():
  with pytest.raises(ValueError, match="digits are bytes"):
    data.load("digits", range=(0, 16))


def test_the_range_that_is_advised_holds_all(tmp_path):
  stored = RNG.normal(size=(50, 4, 4, 1)).astype(np.float32)
  path = save(tmp_path / "a.npy", stored)
  with pytest.raises(ValueError, match="name a range that holds all") as error:
    data.load(path, range=(0, 1))
  low, high = str(error.value).split("range=(")[1].strip(")").split(", ")
  assert len(data.load(path, range=(float(low), float(high)))) == 50
