import chex
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.runs.training.monitor import Monitor

DIGITS = dj.data.load("digits")
PARAMS = {"w": np.array([3.0, 4.0], np.float32)}


def pictures(chosen):
  return dj.images.from_uint8(DIGITS.gather(np.asarray(chosen))["image"])


def test_the_data_themselves_are_no_drift():
  chosen = np.arange(1024) * 1797 // 1024  # what the monitor compares with
  row = Monitor(DIGITS, num=1024, frechet=True)(
    pictures(chosen), PARAMS, PARAMS
  )
  np.testing.assert_allclose(row["drift"], [0], atol=1e-6)
  assert row["n"] == 1024
  assert row["saturated"] == row["saturated_data"]
  assert row["frechet"] < 1e-6
  assert "distance" not in row  # from itself
  assert "frechet_data" not in row  # there are no others to compare with


def test_constant_shifts_and_known_shares_are_found():
  x = pictures(range(64))
  data = pictures(np.arange(1024) * 1797 // 1024)
  average = {"w": 1.5 * PARAMS["w"]}
  unit = data.mean(axis=(1, 2)).std(axis=0)
  monitor = Monitor(DIGITS, num=64)
  plain, moved = monitor(x, average, PARAMS), monitor(x + 0.25, average, PARAMS)
  np.testing.assert_allclose(
    np.subtract(moved["drift"], plain["drift"]), 0.25 / unit, rtol=1e-4
  )
  np.testing.assert_allclose(plain["distance"], 0.5, rtol=1e-6)
  np.testing.assert_allclose(plain["saturated_data"], (data**2 == 1).mean())
  grey = monitor(0 * x, average, PARAMS)
  assert grey["saturated"] == 0
  assert "frechet" not in plain


def test_random_pictures_of_the_data_are_at_the_distance_of_chance():
  monitor = Monitor(DIGITS, num=64, frechet=True)
  rng = np.random.default_rng(0)
  rows = [
    monitor(pictures(rng.choice(1797, 64, replace=False)), PARAMS, PARAMS)
    for _ in range(8)
  ]
  distances = [row["frechet"] for row in rows]
  own = rows[0]["frechet_data"]
  assert abs(np.mean(distances) - own) < 5 * np.std(distances, ddof=1)
  worse = monitor(pictures(range(64)) + 0.3, PARAMS, PARAMS)
  assert worse["frechet"] > 3 * max(distances)
  # Chance drifts by 1 / 8 here: five times that is no chance.
  drift = np.array([row["drift"][0] for row in rows])
  assert np.abs(drift).max() < 5 / 8


def test_upsamplers_are_compared_with_the_pictures_they_enlarge():
  row = Monitor(DIGITS, num=5, paired=True, frechet=True)(
    pictures(range(5)), PARAMS, PARAMS
  )
  np.testing.assert_allclose(row["drift"], [0], atol=1e-6)
  assert row["frechet"] < 1e-6 and "frechet_data" not in row


@pytest.mark.parametrize("num", [1, 2])
def test_a_preview_may_be_one_picture_of_one(num):
  source = dj.data.ArraySource(
    name="one",
    image_shape=(4, 4, 3),
    images=np.zeros((num, 4, 4, 3), np.uint8),
    labels=np.zeros(num, np.int32),
  )
  monitor = Monitor(source, num=num, frechet=True)
  row = monitor(np.full((num, 4, 4, 3), -1.0, np.float32), PARAMS, PARAMS)
  chex.assert_tree_all_finite(row)
  assert row["drift"] == [0, 0, 0] and row["saturated"] == 1
