"""Augmentation: the published code's numbers, and what a label stands for."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import diffusion_jax as dj
from diffusion_jax import augmentation, conditions
from diffusion_jax.augmentation import Motion


def still(batch):
  return Motion(*(jnp.zeros(batch) for _ in Motion._fields))


def published(numbers, name, p):
  """The motion that the published code's draws stand for."""
  draws = iter(
    numbers[f"{name}_draw{k}"]
    for k in range(20)
    if f"{name}_draw{k}" in numbers
  )
  every = ("xflip", "yflip", "scale", "rotate_frac", "aniso", "translate_frac")
  motion = still(4)

  def when(value, rate=p):
    return np.where(next(draws) < rate, value, 0)

  for kind in every if name == "edm" else (name,):
    w = next(draws)
    if kind == "xflip":
      motion = motion._replace(mirror=when(w, 1e8 * p))
    if kind == "yflip":
      motion = motion._replace(flip=when(w))
    if kind == "scale":
      motion = motion._replace(scale=when(w))
    if kind == "rotate_frac":
      motion = motion._replace(angle=when((2 * w - 1) * np.pi))
    if kind == "aniso":
      axis = (2 * next(draws) - 1) * np.pi
      motion = motion._replace(stretch=when(w), axis=when(axis, 0.5))
    if kind == "translate_frac":
      x, y = when(w)
      motion = motion._replace(shift_x=x, shift_y=y)
  return motion


LABELS = {
  "xflip": [0], "yflip": [1], "scale": [2], "rotate_frac": [3, 4],
  "aniso": [5, 6], "translate_frac": [7, 8], "edm": range(9),
}  # fmt: skip


@pytest.mark.parametrize(
  ("name", "p"), [*((name, 1.0) for name in LABELS), ("edm", 0.12)]
)
def test_each_motion_is_the_published_one(name, p):
  numbers = reference.load("augment")
  with jax.enable_x64(True):
    if (name, p) == ("edm", 1.0):
      numbers = {
        key.replace("edm_p1", "edm"): numbers[key]
        for key in numbers
        if key.startswith(("images", "edm_p1"))
      }
    motion = published(numbers, name, p)
    got = augmentation.moved(jnp.asarray(numbers["images"]), motion)
    labels = augmentation.labels(motion)[:, jnp.array(LABELS[name])]
    np.testing.assert_allclose(got, numbers[f"{name}_out"], atol=1e-6)
    np.testing.assert_allclose(labels, numbers[f"{name}_labels"], atol=1e-9)


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(0), (4, 6, 10, 3))


def test_nothing_is_nothing_to_the_bit(images):
  motion = augmentation.draw(jax.random.key(1), 4, 0.0)
  np.testing.assert_array_equal(augmentation.moved(images, motion), images)
  labels = augmentation.labels(motion)
  assert labels.shape == (4, augmentation.NUM_LABELS)
  np.testing.assert_array_equal(labels, 0)


def test_mirrors_move_pixels_to_the_bit(images):
  ones = jnp.ones(4)
  for kind, flipped in (
    ("mirror", images[:, :, ::-1]), ("flip", images[:, ::-1]),
  ):  # fmt: skip
    got = augmentation.moved(images, still(4)._replace(**{kind: ones}))
    np.testing.assert_array_equal(got, flipped)


def test_two_mirrors_are_half_a_turn():
  # Of a square, smooth and without a symmetry, away from its edges.
  line = jnp.linspace(-1, 1, 16)
  x = (0.6 * line[:, None] + line[None] ** 2 * line[:, None] + line[None]) / 2
  x = x.reshape(1, 16, 16, 1)
  for angle, want in (
    (jnp.pi, x[:, ::-1, ::-1]), (jnp.pi / 2, jnp.rot90(x, 1, (1, 2))),
  ):  # fmt: skip
    got = augmentation.moved(x, still(1)._replace(angle=jnp.array([angle])))
    inside = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(got[inside], want[inside], atol=2e-2)


def test_a_shift_of_whole_pixels_moves_them(images):
  # 2 of 10 pixels to the right; an eighth of the width is 1.
  motion = still(4)._replace(shift_x=jnp.full(4, 2 / 1.25))
  got = augmentation.moved(images, motion)
  np.testing.assert_allclose(got[:, :, 2:], images[:, :, :-2], atol=1e-4)


def test_each_kind_is_as_frequent_as_asked():
  n, p = 20_000, 0.12
  motion = augmentation.draw(jax.random.key(0), n, p)
  apart = 5 * np.sqrt(0.25 / n)
  for kind, rate in (
    ("mirror", 0.5), ("flip", p / 2), ("scale", p), ("angle", p),
    ("stretch", p), ("axis", 0.5), ("shift_x", p), ("shift_y", p),
  ):  # fmt: skip
    assert abs((getattr(motion, kind) != 0).mean() - rate) < apart, kind
  both = (motion.shift_x != 0) == (motion.shift_y != 0)
  assert both.all()


def test_an_objective_sees_what_was_done():
  def draw(key, state, batch):
    return batch

  objective = dj.objectives.Objective(draw, lambda *_: 0, 1)
  made = augmentation.augmented(objective, 0.5)
  batch = {"image": jnp.ones((8, 4, 4, 1)), "label": jnp.arange(8)}
  state = types.SimpleNamespace(step=3)
  drawn = made.draw(jax.random.key(0), state, batch)
  assert (drawn["augment"] != 0).any()
  cond = conditions.Conditions(dj.continuous.edm()).draw(
    drawn, jax.random.key(0), 3
  )
  np.testing.assert_array_equal(cond["augment"], drawn["augment"])
  later = made.draw(jax.random.key(0), types.SimpleNamespace(step=4), batch)
  assert (later["augment"] != drawn["augment"]).any()
  raw = {"image": jnp.ones((8, 4, 4, 1), jnp.uint8)}
  with pytest.raises(ValueError, match="image is uint8; pass floats"):
    made.draw(jax.random.key(0), state, raw)
  with pytest.raises(ValueError, match=r"augment=1.5 must be in \[0, 1\]"):
    augmentation.augmented(objective, 1.5)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_beyond_one_is_refused(p):
  with pytest.raises(ValueError, match=r"p=.* must be in \[0, 1\]"):
    augmentation.draw(jax.random.key(0), 4, p)
