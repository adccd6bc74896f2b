"""DDPM++ and NCSN++: the networks of EDM, their outputs and their sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import diffusion_jax as dj
from diffusion_jax.models import presets, resampling
from diffusion_jax.runs import checks, networks, processes, samplers
from experiments.configs import edm as configs

SMALL = {
  "channels": 8, "stem": 8, "multipliers": (1, 2), "num_blocks": 1,
  "attention_levels": (1,), "num_classes": 5,
}  # fmt: skip
KINDS = {"song_ddpmpp": presets.DDPMPP, "song_ncsnpp": presets.NCSNPP}


def read(weights):  # noqa: C901 - a closure for each kind of layer
  """EDM's weights by our names, in the order in which blocks are made."""
  params, count = {}, {"ResBlock": 0, "Attention": 0}

  def kernel(w):
    return w.T if w.ndim == 2 else w.transpose(2, 3, 1, 0)

  def layer(name, *, dense=False):
    w = weights[f"{name}.weight"]
    made = {"kernel": kernel(w[:, :, 0, 0] if dense and w.ndim == 4 else w)}
    if f"{name}.bias" in weights:
      made["bias"] = weights[f"{name}.bias"]
    return made

  def norm(name):
    scale, bias = (weights[f"{name}.{part}"] for part in ("weight", "bias"))
    return {"GroupNorm_0": {"scale": scale, "bias": bias}}

  def qkv(name):
    # q, k and v lie beside one another in each channel.
    order = np.arange(len(weights[f"{name}.bias"])).reshape(-1, 3).T.ravel()
    made = layer(name, dense=True)
    return {"kernel": made["kernel"][:, order], "bias": made["bias"][order]}

  def block(name):
    made = {
      "Norm_0": norm(f"{name}.norm0"), "conv1": layer(f"{name}.conv0"),
      "time": layer(f"{name}.affine"), "Norm_1": norm(f"{name}.norm1"),
      "conv2": layer(f"{name}.conv1"),
    }  # fmt: skip
    if f"{name}.skip.weight" in weights:
      made["skip"] = layer(f"{name}.skip", dense=True)
    params[f"ResBlock_{count['ResBlock']}"] = made
    count["ResBlock"] += 1
    if f"{name}.qkv.weight" in weights:
      params[f"Attention_{count['Attention']}"] = {
        "Norm_0": norm(f"{name}.norm2"), "qkv": qkv(f"{name}.qkv"),
        "out": layer(f"{name}.proj", dense=True),
      }  # fmt: skip
      count["Attention"] += 1

  for name in (
    "enc.16x16_block0", "enc.8x8_down", "enc.8x8_block0", "dec.8x8_in0",
    "dec.8x8_in1", "dec.8x8_block0", "dec.8x8_block1", "dec.16x16_up",
    "dec.16x16_block0", "dec.16x16_block1",
  ):  # fmt: skip
    block(name)
  params |= {
    "Conv_0": layer("enc.16x16_conv"), "Norm_0": norm("dec.16x16_aux_norm"),
    "Conv_1": layer("dec.16x16_aux_conv"), "time1": layer("map_layer0"),
    "time2": layer("map_layer1"), "classes": layer("map_label"),
    "augment": layer("map_augment"),
  }  # fmt: skip
  if "map_noise.freqs" in weights:
    params["frequencies"] = weights["map_noise.freqs"]
    params["image_1"] = layer("enc.8x8_aux_residual")
  return params


@pytest.mark.parametrize("name", KINDS)
def test_the_network_is_the_published_one(name):
  numbers = {
    key.removeprefix(f"{name}|"): value
    for key, value in reference.load("song").items()
    if key.startswith(name)
  }
  net = dj.UNet(**{**KINDS[name], **SMALL})
  params = read(numbers)
  schedule = dj.continuous.edm()
  x, sigma = (jnp.asarray(numbers[k], jnp.float32) for k in ("x", "sigma"))
  expected = jax.eval_shape(
    lambda key: net.init(key, x, sigma, {"y": jnp.zeros(3, int)}),
    jax.random.key(0),
  )["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)

  @jax.jit
  def apply(x, t, cond):
    return net.apply({"params": params}, x, t, cond)

  predict = dj.predictor(
    apply, schedule, target=dj.targets.edm(), scale=dj.edm.c_in(),
    clock=dj.edm.c_noise,
  )  # fmt: skip
  y = np.argmax(numbers["labels"], axis=1)
  labels = {"y": y, "augment": jnp.asarray(numbers["augment_labels"])}

  def near(got, want):
    np.testing.assert_allclose(got, want, atol=3e-5 * np.abs(want).max())

  clock = dj.edm.c_noise(schedule, sigma)
  np.testing.assert_array_equal(np.eye(5)[y], numbers["labels"])
  near(apply(x, clock, labels), numbers["out"])
  near(predict(x, sigma, labels).x0_hat, numbers["denoised"])
  # The class after the last is none.
  near(apply(x, clock, {"y": np.full(3, 5)}), numbers["out_no_labels"])


@pytest.mark.parametrize(
  ("variant", "params"),
  [
    ("cifar10-vp", 55_733_891), ("cifar10-ve", 56_397_827),
    ("cifar10-cond-vp", 55_735_299), ("cifar10-cond-ve", 56_400_643),
    ("ffhq64-vp", 61_805_571), ("ffhq64-ve", 62_761_091),
  ],
)  # fmt: skip
def test_the_published_networks_have_their_size(variant, params):
  config = configs.get_config(variant)
  size = 64 if "64" in variant else 32
  if config.model.num_classes == 0:
    config.model.num_classes = 10
  net = networks.model(config, (size, size, 3), 10)
  x, one = jnp.zeros((1, size, size, 3)), jnp.ones((1,), int)
  cond = None if config.model.num_classes is None else {"y": one}
  made = jax.eval_shape(
    lambda key: net.init(key, x, one, cond), jax.random.key(0)
  )
  shapes = made["params"]
  trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  # EDM's frequencies are no parameters, its augmentation's are.
  trained -= (
    math.prod(shapes["frequencies"].shape) if "frequencies" in shapes else 0
  )
  assert trained == params


def test_filters_are_their_closed_forms():
  x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
  for way in ("up", "down"):
    np.testing.assert_array_equal(
      resampling.filtered(x, (1, 1), way), resampling.RESAMPLE[way](x)
    )
  # Pixel i of a line becomes 3/4 of itself and 1/4 of each neighbour.
  line = jnp.arange(1.0, 9.0).reshape(1, 8, 1, 1) * jnp.ones((1, 8, 8, 1))
  up = resampling.filtered(line, (1, 3, 3, 1), "up")[0, :, 8, 0]
  want = np.interp(
    np.arange(16) / 2 - 0.25 + 1, np.arange(1, 9), np.arange(1, 9)
  )
  np.testing.assert_allclose(up[2:-2], want[2:-2], rtol=1e-6)
  down = resampling.filtered(line, (1, 3, 3, 1), "down")[0, :, 2, 0]
  np.testing.assert_allclose(down[1:-1], [3.5, 5.5], rtol=1e-6)


def test_settings_are_checked():
  net = dj.UNet(**{**presets.NCSNPP, **SMALL, "taps": (1, 2, 1)})
  with pytest.raises(ValueError, match=r"taps=\(1, 2, 1\) must be an even"):
    net.init(
      jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.ones(1),
      {"y": jnp.zeros(1, int)},
    )  # fmt: skip


def test_the_recipe_is_the_papers():
  config = configs.get_config("cifar10-cond-vp")
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  assert config.batch_size * config.num_steps == pytest.approx(200e6, rel=1e-3)
  # A half-life of half a million pictures.
  assert config.ema.rates[0] ** (500_000 / config.batch_size) == pytest.approx(
    0.5
  )
  pairs = samplers.walk(
    schedule, config.sampling.sampler, config.sampling.spacing,
    config.sampling.steps,
  )  # fmt: skip
  assert 2 * len(pairs) - 1 == 35


def test_published_weights_of_other_codes_do_not_fit():
  net = dj.UNet(**{**presets.DDPMPP, **SMALL})
  with pytest.raises(ValueError, match="stem=8, which has no counterpart"):
    dj.pretrained.to_diffusers({}, net)
