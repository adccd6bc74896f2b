"""The published code's numbers, float64, in tests/data."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

DATA = pathlib.Path(__file__).parent / "data"


def load(name: str):
  return np.load(DATA / f"{name}.npz")


def notes(name: str) -> dict:
  return json.loads((DATA / f"{name}.json").read_text())


def model(coefs, *, learned: bool = False):
  """The closed-form network of process.json; it counts steps from 0."""
  ca, cb, cc, cd = coefs

  def denoise(x_t, t):
    t = (t - 1).reshape(-1, 1, 1, 1)
    mean = ca * x_t + cb * jnp.sin(3 * x_t) + cc * jnp.cos(t / 100)
    if not learned:
      return mean
    return jnp.concatenate([mean, jnp.tanh(cd * x_t + t / 1000 - 0.5)], axis=-1)

  return denoise
