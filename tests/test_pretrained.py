"""The published networks' outputs, from the published names of the weights.

tests/data/networks.npz holds what OpenAI's code returned for weights that a
rule makes: for each tensor n = default_rng(crc32(name)).standard_normal;
biases are 0.1 n, other vectors 1 + 0.1 n, the rest n / sqrt(fan-in).
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from diffusion_jax.models import Classifier, UNet
from diffusion_jax.pretrained import from_openai, to_openai

CASES = reference.notes("networks")


def weights(shapes):
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
  """Ours from the arguments of the published constructor."""
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
  if case["class"] == "EncoderUNetModel":
    return Classifier(
      **settings, num_labels=case["out_channels"], pool=case["pool"]
    )
  return UNet(
    **settings,
    out_channels=case["out_channels"],
    num_classes=case.get("num_classes"),
  )


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_published_codes(name):
  case, numbers = CASES[name], reference.load("networks")
  net = network(case)
  params = from_openai(weights(case["shapes"]), net)
  args = [numbers["x"], numbers["t"] + 1]  # published networks count from 0
  options = {}
  if net.num_classes is not None:
    args.append(numbers["y"])
  if case["class"] == "SuperResModel":
    options["low_res"] = numbers["low_res"]
  out = jax.jit(net.apply)({"params": params}, *args, **options)
  np.testing.assert_allclose(out, numbers[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_out_and_back_is_exact(name):
  net = network(CASES[name])
  published = weights(CASES[name]["shapes"])
  params = from_openai(published, net)
  back = to_openai(params, net)
  assert back.keys() == published.keys()
  for key, tensor in published.items():
    np.testing.assert_array_equal(back[key], tensor)
  # And our own network agrees about every name and shape.
  x, one = jnp.zeros((1, 16, 16, 3)), jnp.ones((1,), jnp.int32)
  args = [x, one] if net.num_classes is None else [x, one, one]
  options = {"low_res": x} if CASES[name]["class"] == "SuperResModel" else {}
  shapes = jax.eval_shape(
    lambda key: net.init(key, *args, **options)["params"], jax.random.key(0)
  )
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_missing_and_unknown_tensors_are_named():
  net = network(CASES["plain"])
  published = weights(CASES["plain"]["shapes"])
  del published["time_embed.0.bias"]
  with pytest.raises(ValueError, match=r"missing .*: time_embed\.0\.bias$"):
    from_openai(published, net)
  published = weights(CASES["plain"]["shapes"]) | {"label_emb.weight": 0}
  with pytest.raises(ValueError, match=r"unknown .*: label_emb\.weight"):
    from_openai(published, net)
