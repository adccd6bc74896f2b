import zlib

import jax
import numpy as np
import pytest
import reference

from diffusion_jax import pretrained
from diffusion_jax.metrics import inception, inception_weights


def by_rule(name, shape):
  """The weights of the reference, from their names."""
  n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
  if name.endswith("running_var"):
    n = np.exp(0.1 * n)
  elif name.endswith(("running_mean", "bias")):
    n = 0.1 * n
  elif len(shape) == 1:
    n = 1 + 0.1 * n
  else:
    n *= np.sqrt(2 / np.prod(shape[1:]))
  return n.astype(np.float32)


@pytest.fixture(scope="module")
def state():
  return {k: by_rule(k, s) for k, s in inception_weights.shapes().items()}


@pytest.fixture(scope="module")
def params(state):
  return inception_weights.from_published(state)

@pytest.mark.parametrize("suffix", ["", "_64x48"])
def test_agrees_with_the_published_network(params, suffix):
  want = reference.load("inception")
  names = ("64", "192", "768", "2048", "logits")
  network = jax.jit(inception.features(params, *names))
  got = network(want[f"images{suffix}"])
  for name in names:
    theirs = name.replace("logits", "logits_unbiased")
    expected = want[f"features_{theirs}{suffix}"]
    error = np.abs(got[name] - expected).max()
    print(name, error / np.abs(expected).max(), error)
    assert error < 1e-3 * np.abs(expected).max()
