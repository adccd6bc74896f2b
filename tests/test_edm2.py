"""EDM2's network: the published code's numbers, sizes, and magnitudes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import diffusion_jax as dj
from diffusion_jax import edm, losses, objectives, optimizers, spacing, targets
from diffusion_jax.models import edm2, presets, resampling
from diffusion_jax.models.edm2 import WEIGHT

SCHEDULE = dj.continuous.edm()
SMALL = {
  "channels": 8, "multipliers": (1, 2), "num_blocks": 1,
  "attention_levels": (1,), "head_channels": 8, "num_classes": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def numbers():
  return reference.load("edm2")


def near(got, want, tolerance=1e-9):
  np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def ours(weight):
  """A weight of (out, in, ...) in our layout."""
  if weight.ndim == 4 and weight.shape[2:] == (1, 1):
    weight = weight[:, :, 0, 0]
  return weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)


def test_each_function_is_the_published_one(numbers):
  a, b, c = (numbers[f"mp_{name}"] for name in "abc")
  with jax.enable_x64(True):
    near(edm2.mp_silu(a), numbers["mp_silu"])
    for t in (0.3, 0.5):
      near(edm2.mp_sum(a, b, t), numbers[f"mp_sum_{t}"])
      near(edm2.mp_cat(a, c, t), numbers[f"mp_cat_{t}"])
    near(edm2.normalised(a, (1, 2, 3)), numbers["normalize_all"])
    near(edm2.normalised(a, -1), numbers["normalize_channel"])
    freqs, phases = numbers["fourier_freqs"], numbers["fourier_phases"]
    got = edm2.mp_fourier(
      numbers["fourier_in"], freqs / (2 * np.pi), phases / (2 * np.pi)
    )
    near(got, numbers["fourier_out"])
    for way in ("down", "up"):
      for taps in ((1, 1), (1, 3, 3, 1)):
        name = f"resample_{way}_{len(taps)}"
        got = resampling.filtered(jnp.asarray(numbers[f"{name}_in"]), taps, way)
        near(got, numbers[f"{name}_out"])


@pytest.mark.parametrize("kind", ["conv3", "conv1", "linear"])
def test_a_layer_is_the_published_one_and_so_is_its_gradient(numbers, kind):
  part = {
    key.removeprefix(f"mpconv_{kind}_"): value
    for key, value in numbers.items()
    if key.startswith(f"mpconv_{kind}_")
  }
  layer = edm2.Conv(5, 3 if kind == "conv3" else 1)
  with jax.enable_x64(True):
    run = lambda weight: layer.apply({"params": {WEIGHT: weight}}, x, 0.8)
    x, weight = jnp.asarray(part["in"]), jnp.asarray(ours(part["weight"]))
    near(run(weight), part["out"])
    # An update of zero is what the published layer does to itself in training.
    params = {WEIGHT: weight}
    tx = edm2.forced(optax.sgd(1.0))
    updates, _ = tx.update({WEIGHT: 0 * weight}, tx.init(params), params)
    forced = optax.apply_updates(params, updates)[WEIGHT]
    near(forced, ours(part["forced_weight"]))
    near(run(forced), part["train_out"])
    grad = jax.grad(lambda weight: (run(weight) ** 2).sum())(forced)
    near(grad, ours(part["train_grad"]))


BLOCKS = {
  "enc.8x8_down": "down1", "dec.8x8_in0": "mid0", "dec.8x8_in1": "mid1",
  "dec.16x16_up": "up0", "enc.16x16_block0": "enc0_0",
  "dec.16x16_block0": "dec0_0", "dec.16x16_block1": "dec0_1",
  "enc.8x8_block0": "enc1_0", "dec.8x8_block0": "dec1_0",
  "dec.8x8_block1": "dec1_1",
}  # fmt: skip
LAYERS = {
  "conv_res0": "conv1", "conv_res1": "conv2", "conv_skip": "skip",
  "emb_linear": "emb", "attn_qkv": "qkv", "attn_proj": "proj",
}  # fmt: skip
TOP = {
  "emb_noise": "time", "emb_label": "classes", "enc.16x16_conv": "stem",
  "out_conv": "out",
}  # fmt: skip


def read(numbers):
  """The published network's weights by our names."""
  theirs = {
    key.removeprefix("weights|unet."): value
    for key, value in numbers.items()
    if key.startswith("weights|unet.")
  }

  def layer(name):
    weight = ours(theirs.pop(f"{name}.weight"))
    if name.endswith("attn_qkv"):  # q, k and v lie beside one another
      weight = weight[:, np.arange(weight.shape[1]).reshape(-1, 3).T.ravel()]
    return {WEIGHT: weight}

  params = {our: layer(their) for their, our in TOP.items()}
  params["gain"] = theirs.pop("out_gain")
  params["fourier"] = {
    part: theirs.pop(f"emb_fourier.{part}") / (2 * np.pi)
    for part in ("freqs", "phases")
  }
  for their, our in BLOCKS.items():
    params[our] = {"gain": theirs.pop(f"{their}.emb_gain")} | {
      name: layer(f"{their}.{part}")
      for part, name in LAYERS.items()
      if f"{their}.{part}.weight" in theirs
    }
  assert not theirs
  return params


def test_the_network_is_the_published_one(numbers):
  net, params = edm2.EDM2(**SMALL), read(numbers)
  x, sigma, labels = (
    jnp.asarray(numbers[f"unet|{key}"], jnp.float32)
    for key in ("x", "sigma", "labels")
  )
  y = np.argmax(labels, axis=1)
  expected = jax.eval_shape(
    lambda key: net.init(key, x, sigma, {"y": y}), jax.random.key(0)
  )["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)

  apply = functools.partial(jax.jit(net.apply), {"params": params})
  predict = dj.predictor(
    apply, SCHEDULE, target=targets.edm(), scale=edm.c_in(), clock=edm.c_noise
  )
  clock = edm.c_noise(SCHEDULE, sigma)
  near(apply(x, clock, {"y": y}), numbers["unet|out"], 2e-5)
  near(predict(x, sigma, {"y": y}).x0_hat, numbers["unet|denoised"], 2e-5)
  head = {
    part: {leaf: numbers[f"weights|logvar_{part}.{leaf}"] for leaf in leaves}
    for part, leaves in (
      ("fourier", ("freqs", "phases")), ("linear", ("weight",)),
    )
  }  # fmt: skip
  near(uncertainty(head, clock), numbers["unet|logvar"], 2e-5)


def uncertainty(head, clock):
  """Of the published head."""
  fourier = {k: v / (2 * np.pi) for k, v in head["fourier"].items()}
  linear = {WEIGHT: head["linear"]["weight"].T}
  net = edm2.Uncertainty(len(fourier["freqs"]))
  return net.apply({"params": {"fourier": fourier, "linear": linear}}, clock)


def door(numbers):
  """The published code's stand-in for F, behind the door."""
  a, b, c, _ = numbers["coefs"]

  def F(x, s):
    s = s.reshape(-1, 1, 1, 1)
    return a * x + b * jnp.sin(2 * x + s) + c * s

  return dj.predictor(
    F, SCHEDULE, target=targets.edm(), scale=edm.c_in(), clock=edm.c_noise
  )


def test_the_loss_is_the_published_one(numbers):
  head = {
    part: {
      key.rpartition(".")[2]: value
      for key, value in numbers.items()
      if key.startswith(f"logvar|logvar_{part}")
    }
    for part in ("fourier", "linear")
  }
  with jax.enable_x64(True):
    clock = lambda sigma: edm.c_noise(SCHEDULE, sigma)
    u = uncertainty(head, clock(numbers["precond_sigma"]))
    near(u, numbers["precond_logvar"])
    D = door(numbers)(numbers["precond_x"], numbers["precond_sigma"]).x0_hat
    near(D, numbers["precond_D"])
    sigma = np.exp(-0.4 + 1.0 * numbers["loss_draw"])
    loss = losses.weighted_mse(
      door(numbers), SCHEDULE, numbers["x0"], sigma,
      jnp.asarray(numbers["loss_noise"]),
    )  # fmt: skip
    got = losses.uncertain(loss, uncertainty(head, clock(sigma)))
  near(got, numbers["loss"].mean(axis=(1, 2, 3)))


@pytest.mark.parametrize(
  ("name", "scale", "churn"),
  [
    ("det5", 1.0, {}),
    ("guided8", 1.4, {}),
    ("guided_churn6", 2.1, {
      "S_churn": 8, "S_min": 0.05, "S_max": 50, "S_noise": 1.003,
    }),
  ],
)  # fmt: skip
def test_autoguided_sampling_is_the_published_one(numbers, name, scale, churn):
  num, d = int(name[-1]), numbers["coefs"][3]

  def weak(x, sigma):
    return d * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

  with jax.enable_x64(True):
    weaker = dj.predictor(weak, SCHEDULE, target=targets.x0)
    predict = dj.guidance.autoguidance(door(numbers), weaker, SCHEDULE, scale)
    pairs, x = spacing.named(SCHEDULE, "karras", num), 80 * numbers["noise"]
    step = edm.heun(num, **churn)
    # They draw only where it is used.
    drawn = iter(numbers.get(f"sampler_{name}_eps", ()))
    for t, s in pairs:
      used = churn and churn["S_min"] <= t <= churn["S_max"]
      eps = next(drawn) if used else np.zeros_like(x)
      x, _ = step(predict, SCHEDULE, x, t, s, eps)
  near(x, numbers[f"sampler_{name}_out"])


def test_the_learning_rate_is_the_published_one(numbers):
  for row, want in zip(numbers["lr_args"], numbers["lr"], strict=True):
    images, batch, lr, steps, warmup = row
    at = optimizers.rate(
      lr, warmup_steps=warmup * 1e6 / batch, decay="inverse_sqrt",
      decay_steps=steps or None,
    )  # fmt: skip
    np.testing.assert_allclose(at(images / batch), want, rtol=1e-6)


@pytest.mark.parametrize(
  ("size", "params"),
  [
    ("xxs", 31_307_749), ("xs", 124_710_821), ("s", 280_209_253),
    ("m", 497_803_045), ("l", 777_492_197), ("xl", 1_119_276_709),
    ("xxl", 1_523_156_581),
  ],
)  # fmt: skip
def test_the_published_networks_have_their_size(size, params):
  net = edm2.EDM2(**presets.EDM2[size], num_classes=1000)
  x, one = jnp.zeros((1, 64, 64, 3)), jnp.ones((1,), int)
  made = jax.eval_shape(
    lambda key: net.init(key, x, one, {"y": one}), jax.random.key(0)
  )["params"]
  # Their frequencies and phases are no parameters.
  trained = {name: part for name, part in made.items() if name != "fourier"}
  assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == params


def test_magnitudes_are_kept():
  # Through every layer, before training and whatever the length of weights.
  key_x, key_t, key_p = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(key_x, (16, 8, 12, 3))
  net = edm2.EDM2(
    32, (1, 2), 1, attention_levels=(1,), head_channels=16, num_classes=4
  )
  t, y = jax.random.normal(key_t, (16,)), {"y": jnp.arange(16) % 4}
  params = jax.jit(net.init)(key_p, x, t, y)["params"]
  begin = jax.jit(net.apply)({"params": params}, x, t, y)
  np.testing.assert_array_equal(begin, 0)
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: 7 * leaf if path[-1].key == WEIGHT else leaf + 0.0,
    {**params, "gain": jnp.ones(())},
  )
  _, seen = jax.jit(
    lambda params: net.apply(
      {"params": params}, x, t, y, capture_intermediates=True,
      mutable=["intermediates"],
    )
  )(params)  # fmt: skip
  flat = jax.tree_util.tree_leaves_with_path(seen["intermediates"])
  assert len(flat) > 40
  for path, value in flat:
    rms = float(jnp.sqrt(jnp.square(value).mean()))
    zero = "'emb'" in jax.tree_util.keystr(path)  # its gain starts at 0
    assert rms == 0 if zero else 0.5 < rms < 1.6, (path, rms)


def test_an_update_turns_a_weight_and_cannot_lengthen_it():
  params = {"a": {WEIGHT: jnp.ones((4, 2))}, "weight": jnp.ones((4, 2))}
  grads = jax.tree.map(lambda x: -jnp.arange(8.0).reshape(4, 2), params)
  tx = edm2.forced(optimizers.optimizer(lr=0.5, warmup_steps=0))
  state = tx.init(params)
  for _ in range(3):
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  rms = jnp.sqrt(jnp.square(params["a"][WEIGHT]).mean(axis=0))
  np.testing.assert_allclose(rms, 1, rtol=2e-4)
  assert float(jnp.square(params["weight"]).mean()) > 2


def test_what_is_least_is_the_logarithm_of_the_loss():
  loss = jnp.array([0.1, 1.0, 5.0])
  slope = jax.grad(lambda u: losses.uncertain(loss, u).sum())(jnp.log(loss))
  np.testing.assert_allclose(slope, 0, atol=1e-6)
  np.testing.assert_allclose(
    losses.uncertain(loss, jnp.log(loss)), 1 + jnp.log(loss), rtol=1e-6
  )


def test_an_objective_learns_its_uncertainty_with_the_network():
  def apply(params, x_t, t, cond, key):
    return params["w"] * x_t

  plain, learnt = (
    objectives.diffusion(
      apply, SCHEDULE, target=targets.edm(), uncertainty=u
    )
    for u in (None, lambda params, t: params["u"] + 0 * t)
  )  # fmt: skip
  x0 = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
  examples = objectives.Noised(x0, None, jnp.full(4, 0.3), x0[::-1])
  params = {"w": jnp.ones(()), "u": jnp.asarray(0.7)}
  loss = plain.loss(params, examples, jax.random.key(1))
  np.testing.assert_allclose(
    learnt.loss(params, examples, jax.random.key(1)),
    loss / math.exp(0.7) + 0.7, rtol=1e-6,
  )  # fmt: skip


def test_what_makes_no_sense_is_refused():
  net, x = edm2.EDM2(**SMALL), jnp.zeros((1, 16, 16, 3))
  one, key = jnp.ones(1), jax.random.key(0)
  for cond, message in (
    (None, "num_classes=5 was called with no classes"),
    ({"y": one, "augment": one}, "the condition 'augment' is not one of y"),
  ):
    with pytest.raises(ValueError, match=message):
      net.init(key, x, one, cond)
  with pytest.raises(ValueError, match="must be multiples of 2"):
    net.init(key, x[:, 1:], one, {"y": one})
