"""The published code's numbers, float64, in tests/data."""

import functools
import json
import math
import pathlib
import zlib

import jax.numpy as jnp
import numpy as np

from diffusion_jax import prediction
from diffusion_jax.models import Classifier, UNet
from diffusion_jax.targets import TARGETS

DATA = pathlib.Path(__file__).parent / "data"
PUBLISHED = DATA / "published"


@functools.cache
def load(name: str):
  with np.load(DATA / f"{name}.npz") as arrays:
    return dict(arrays)


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


def predict(coefs, schedule, *, target="eps", variance="fixed_small"):
  """The closed-form network behind its door, by names."""
  return prediction.predictor(
    model(coefs, learned=variance.startswith("learned")),
    schedule,
    target=TARGETS[target],
    variance=variance,
  )


def weights(shapes):
  """Weights by rule, from names and shapes.

  n = default_rng(crc32(name)).standard_normal; biases are 0.1 n, other
  vectors 1 + 0.1 n, the rest n / sqrt(fan-in).
  """

  def one(name, shape):
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bias"):
      n = 0.1 * n
    elif len(shape) == 1:
      n = 1 + 0.1 * n
    else:
      n /= math.sqrt(math.prod(shape[1:]))
    return n.astype(np.float32)

  return {name: one(name, tuple(shape)) for name, shape in shapes.items()}


def network(case):
  """Our network from the arguments of OpenAI's constructor."""
  settings = {
    "channels": case["model_channels"],
    "multipliers": tuple(case["channel_mult"]),
    "num_blocks": case["num_res_blocks"],
    "attention_levels": tuple(
      int(math.log2(factor)) for factor in case["attention_resolutions"]
    ),
    "heads": case.get("num_heads", 1),
    "head_channels": case.get("num_head_channels"),
    "qkv_order": "qkv" if case.get("use_new_attention_order") else "heads",
    "scale_shift": case.get("use_scale_shift_norm", False),
    "resample": "block" if case.get("resblock_updown") else "conv",
    "embedding": "cos_sin",
    "groups": 32,
    "epsilon": 1e-5,
    "padding": "symmetric",
  }
  if "pool" in case:
    return Classifier(
      **settings, num_labels=case["out_channels"], pool=case["pool"]
    )
  return UNet(
    **settings,
    out_channels=case["out_channels"],
    num_classes=case.get("num_classes"),
  )


def assert_same(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name, array in theirs.items():
    assert ours[name].dtype == array.dtype
    np.testing.assert_array_equal(ours[name], array)
