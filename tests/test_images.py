import chex
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import images


def test_bytes_survive_the_round_trip():
  k = np.arange(256)
  np.testing.assert_array_equal(images.to_uint8(k / 127.5 - 1), k)


def test_what_are_no_bytes_are_refused():
  with pytest.raises(ValueError, match="x is float64; pass bytes"):
    images.from_uint8(np.array([0.5]))
  with pytest.raises(ValueError, match="x is uint8; pass floats"):
    images.grid(np.zeros((2, 8, 8, 1), np.uint8))
  with pytest.raises(ValueError, match="columns=-1 must be at least 1"):
    images.grid(np.zeros((2, 8, 8, 1)), columns=-1)
  with pytest.raises(ValueError, match=r"x has shape \(8, 8\); pass images"):
    images.grid(np.zeros((8, 8)))


def test_rules_of_quantisation_differ_by_half_a_level():
  x = np.random.default_rng(0).uniform(-1, 1, 10_000)
  rounded = images.to_uint8(x).astype(float)
  floored = images.to_uint8(x, "floor")
  error = np.std(rounded - floored) / 100
  assert abs((rounded - floored).mean() - 0.5) < 4 * error
  with pytest.raises(ValueError, match="'ceil' is not one of round, floor"):
    images.to_uint8(x, "ceil")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("draw", [images.to_uint8, images.grid])
def test_what_is_not_finite_is_no_picture(draw, value):
  x = np.zeros((2, 8, 8, 1))
  x[1, 2, 3] = value
  with pytest.raises(FloatingPointError, match="1 of the 128 values"):
    draw(x)


@pytest.mark.parametrize(
  ("shape", "factor", "tile"),
  [((3, 8, 8, 1), 8, 64), ((3, 100, 80, 3), 1, None), ((3, 32, 48, 3), 2, 64)],
)
def test_grids_enlarge_small_pictures_exactly(shape, factor, tile):
  x = np.random.default_rng(0).uniform(-1, 1, shape)
  grid = images.grid(x, columns=2, gap=4)
  b, h, w, _ = shape
  h, w = h * factor, w * factor
  chex.assert_shape(grid, (2 * (h + 4) + 4, 2 * (w + 4) + 4, 3))
  assert tile is None or h == tile
  second = grid[4 : 4 + h, w + 8 : 2 * w + 8]
  want = np.broadcast_to(images.to_uint8(x[1]), (*shape[1:3], 3))
  np.testing.assert_array_equal(second[::factor, ::factor], want)
  np.testing.assert_array_equal(second[factor - 1 :: factor, ::factor], want)
  assert (grid[-h - 4 :, w + 8 :] == 255).all()  # no fourth picture


def test_other_channels_are_shown_side_by_side():
  x = np.stack([np.full((2, 2), v) for v in (-1.0, 0.0, 1.0, 0.5)], -1)[None]
  shown = images.displayable(images.to_uint8(x))
  chex.assert_shape(shown, (1, 2, 8, 3))
  np.testing.assert_array_equal(shown[0, 0, ::2, 0], [0, 128, 255, 191])


def test_pictures_are_written_as_they_are(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
  images.save_png(tmp_path / "new" / "a.png", picture)
  with Image.open(tmp_path / "new" / "a.png") as read:
    np.testing.assert_array_equal(read, picture)
  images.save_png(tmp_path / "b.png", picture[..., :1])
  with Image.open(tmp_path / "b.png") as grey:
    assert grey.mode == "L"


def test_gifs_hold_every_frame(tmp_path):
  frames = [np.full((6, 8, 3), v, np.uint8) for v in (0, 100, 200)]
  images.save_gif(tmp_path / "a.gif", frames)
  with Image.open(tmp_path / "a.gif") as gif:
    assert gif.n_frames == 3 and gif.size == (8, 6)


def test_no_images_are_no_grid():
  with pytest.raises(ValueError, match="no images to tile"):
    images.grid(np.zeros((0, 8, 8, 1)))


def test_no_frames_are_no_animation(tmp_path):
  with pytest.raises(ValueError, match="no frames"):
    images.save_gif(tmp_path / "a.gif", [])
