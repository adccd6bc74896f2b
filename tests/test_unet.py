import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from diffusion_jax.models import DiT, UNet, convolution, resampling
from diffusion_jax.models.attention import Attention
from diffusion_jax.models.layers import group_norm, num_groups, sinusoid
from diffusion_jax.models.presets import PRESETS

SMALL = {
  "channels": 8,
  "multipliers": (1, 2),
  "num_blocks": 1,
  "attention_levels": (1,),
}

CIFAR = PRESETS["ddpm-cifar10"]


def inputs(shape, batch=2):
  t = jnp.arange(1, batch + 1)
  return jax.random.normal(jax.random.key(0), (batch, *shape)), t


@functools.cache
def make(shape=(8, 8, 1), **options):
  """A small compiled U-Net whose zero layers are not zero, and its input.

  Returns:
    (call, params, x, t) with call(params, x, t, y=None, ...) jitted.
  """
  net = UNet(**{**SMALL, **options})
  x, t = inputs(shape)
  cond = None if net.num_classes is None else {"y": jnp.array([0, 1])}
  shapes = jax.eval_shape(net.init, jax.random.key(1), x, t, cond)["params"]
  # Drawn in NumPy: compiling an initialiser per shape would take longer.
  rng = np.random.default_rng(2)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(
      rng.normal(1.0 if len(leaf.shape) == 1 else 0.0, 0.15, leaf.shape),
      jnp.float32,
    ),
    shapes,
  )

  @functools.partial(jax.jit, static_argnames="train")
  def call(params, x, t, y=None, *, train=False, rngs=None):
    cond = None if y is None else {"y": y}
    return net.apply({"params": params}, x, t, cond, train=train, rngs=rngs)

  return call, params, x, t


def abstract(net, shape):
  x, t = (jnp.zeros((1, *shape)), jnp.ones((1,), jnp.int32))
  return jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]


def test_attention_is_where_the_paper_has_it():
  # 16 x 16 of CIFAR-10: 2 blocks down, 1 in the middle, 3 up.
  names = abstract(CIFAR.net, (32, 32, 3))
  assert sum(name.startswith("Attention") for name in names) == 6
  widths = [
    names[n]["qkv"]["kernel"].shape[0] for n in names if "Attention" in n
  ]
  assert widths == [256] * 6


def num_equations(function, *args):
  """Equations of a traced program, those of a function in it once."""
  functions = {}

  def add(jaxpr):
    if id(jaxpr) not in functions:
      functions[id(jaxpr)] = jaxpr
      for equation in jaxpr.eqns:
        for inner in core.jaxprs_in_params(equation.params):
          add(inner)

  add(jax.make_jaxpr(function)(*args).jaxpr)
  return sum(len(jaxpr.eqns) for jaxpr in functions.values())


def test_the_traced_program_stays_small():
  # Tracing and lowering take time in proportion: 35.7M parameters in 22
  # residual blocks were 1,204 equations when this was written, with the
  # gradient 3,485; twice as many when each norm was traced by itself.
  net, shape = CIFAR.net, (32, 32, 3)
  args = abstract(net, shape), jnp.zeros((8, *shape)), jnp.ones(8, jnp.int32)

  def call(params, x, t):
    return net.apply({"params": params}, x, t)

  assert num_equations(call, *args) < 1250
  assert num_equations(jax.grad(lambda *a: call(*a).sum()), *args) < 3700


@pytest.mark.parametrize(
  ("shape", "channels"), [((16, 8, 3), 8), ((6, 10, 2), 12), ((2, 32, 5), 8)]
)
def test_any_size_and_number_of_channels(shape, channels):
  call, params, x, t = make(shape, channels=channels)
  out = call(params, x, t)
  chex.assert_shape(out, (2, *shape))
  chex.assert_type(out, jnp.float32)
  chex.assert_tree_all_finite(out)


def test_starts_as_zero():
  # The last layer is zero: the first prediction is zero noise, loss 1.
  net = UNet(channels=8, multipliers=(1,), num_blocks=1, attention_levels=())
  x, t = inputs((8, 8, 3))
  out = jax.jit(lambda key: net.init_with_output(key, x, t)[0])
  np.testing.assert_array_equal(out(jax.random.key(0)), 0)


def test_depends_on_every_input():
  call, params, x, t = make(num_classes=2)
  f = lambda x, t, y: call(params, x, t, y)
  y = jnp.array([0, 1])
  base = f(x, t, y)
  for changed in (f(x + 1, t, y), f(x, t + 5, y), f(x, t, 1 - y)):
    assert np.abs(changed - base).max() > 1e-3


def test_examples_do_not_mix():
  call, params, x, t = make()
  f = lambda x: call(params, x, t)
  np.testing.assert_allclose(
    f(x.at[1].add(1.0))[0], f(x)[0], rtol=1e-5, atol=1e-6
  )


def test_the_network_counts_steps_from_zero():
  call, params, x, t = make(time_scale=0.5)
  plain, *_ = make()
  # (t - 1) / 2 at t = 5 is (t - 1) at t = 3.
  np.testing.assert_allclose(
    call(params, x, t * 0 + 5),
    plain(params, x, t * 0 + 3),
    rtol=1e-6,
  )


def test_dropout_sits_where_training_says():
  call, params, x, t = make(dropout=0.5)
  f = lambda key: call(params, x, t, train=True, rngs={"dropout": key})
  key = jax.random.key(3)
  np.testing.assert_array_equal(f(jax.random.clone(key)), f(key))
  assert np.abs(f(jax.random.key(3)) - f(jax.random.key(4))).max() > 1e-3
  still = call(params, x, t)
  assert np.abs(f(jax.random.key(3)) - still).max() > 1e-3


def test_jit_gives_the_same_output():
  # Outside jit every operation is a program: the network is of few.
  least = {"multipliers": (1,), "attention_levels": (0,)}
  call, params, x, t = make(**least)
  eager = UNet(**{**SMALL, **least}).apply({"params": params}, x, t)
  np.testing.assert_allclose(call(params, x, t), eager, rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_stay_close_and_parameters_float32():
  call, params, x, t = make()
  half, half_params, *_ = make(dtype="bfloat16")
  chex.assert_trees_all_equal(half_params, params)
  chex.assert_trees_all_equal_dtypes(
    abstract(UNet(**SMALL, dtype="bfloat16"), (8, 8, 1)), params
  )
  out = half(params, x, t)
  chex.assert_type(out, jnp.float32)
  want = call(params, x, t)
  assert np.abs(out - want).max() < 0.05 * np.abs(want).max()


def test_sinusoids_are_ho_et_al_s():
  # Row t: sin(t f_i), then cos(t f_i), f_i = 10000^(-i / (half - 1)).
  t = np.array([0.0, 1.0, 500.0, 999.0])
  f = 10000.0 ** (-np.arange(4) / 3)
  want = np.concatenate([np.sin(np.outer(t, f)), np.cos(np.outer(t, f))], 1)
  np.testing.assert_allclose(sinusoid(jnp.asarray(t), 8), want, atol=1e-4)
  odd = sinusoid(jnp.asarray(t), 9)
  chex.assert_shape(odd, (4, 9))
  np.testing.assert_array_equal(odd[:, -1], 0)


@pytest.mark.parametrize("channels", [1, 7, 32, 48, 100, 128, 257, 512])
def test_groups_divide_the_channels(channels):
  groups = num_groups(channels)
  assert channels % groups == 0
  assert channels // groups >= min(4, channels)
  if channels % 32 == 0 and channels >= 128:
    assert groups == 32  # as published


@pytest.mark.parametrize(
  ("size", "mean"), [(8, 0), (8, 1000), (8, 1e4), (1, 0), (1, 100)]
)
def test_normalisation_keeps_its_digits(size, mean):
  x = np.random.default_rng(0).normal(mean, 1, (3, size, size, 16))
  x = x.astype(np.float32)

  def normalised(x):
    return group_norm(
      x, jnp.ones(16), jnp.zeros(16), groups=4, epsilon=1e-6
    )  # fmt: skip

  def by_definition(x):
    z = x.reshape(3, size * size, 4, 4)
    z -= z.mean(axis=(1, 3), keepdims=True)
    z /= jnp.sqrt((z**2).mean(axis=(1, 3), keepdims=True) + 1e-6)
    return z.reshape(x.shape)

  got, slope = jax.vjp(normalised, jnp.asarray(x))
  with jax.enable_x64(True):
    want, exact_slope = jax.vjp(by_definition, jnp.asarray(x, jnp.float64))
    (exact,) = exact_slope(want**2)
  np.testing.assert_allclose(got, want, atol=3e-6)
  np.testing.assert_allclose(slope(got**2)[0], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's programs")
def test_no_activation_picks_the_shift_of_its_norm():
  # As part of the loop over activations it made a network a quarter slower.
  def normalised(x):
    return group_norm(
      x, jnp.ones(16), jnp.zeros(16), groups=4, epsilon=1e-6
    )  # fmt: skip

  x = jax.ShapeDtypeStruct((3, 8, 8, 16), jnp.float32)
  program = jax.jit(normalised).lower(x).compile().as_text()
  loops = [
    body
    for body in re.findall(r"^%fused.*?^}", program, re.MULTILINE | re.DOTALL)
    if re.search(r"ROOT \S+ = f32\[3,8,8,16\]", body)
  ]
  assert loops
  for body in loops:
    assert not re.search(r" (slice|gather|dynamic-slice)\(", body)


@pytest.mark.parametrize("channels", [4, 32])
def test_narrow_networks_still_know_the_time(channels):
  call, params, x, t = make(channels=channels)
  f = lambda t: call(params, x, t)
  assert np.abs(f(t + 400) - f(t)).max() > 1e-3


def test_attention_is_softmax_of_scaled_products():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
  net = Attention(heads=2)
  params = net.init(jax.random.key(1), x)["params"]
  params["out"]["kernel"] = jax.random.normal(jax.random.key(2), (8, 8))
  out = net.apply({"params": params}, x)

  tokens = np.asarray(
    nn.GroupNorm(num_groups(8), epsilon=1e-6).apply(
      {"params": params["Norm_0"]["GroupNorm_0"]}, x
    )
  ).reshape(2, 12, 8)
  params = jax.tree.map(np.asarray, params)
  qkv = tokens @ params["qkv"]["kernel"] + params["qkv"]["bias"]
  q, k, v = np.moveaxis(qkv.reshape(2, 12, 3, 2, 4), 2, 0)
  want = np.zeros((2, 12, 8))
  for b in range(2):
    for h in range(2):
      scores = q[b, :, h] @ k[b, :, h].T / np.sqrt(4)
      weights = np.exp(scores - scores.max(axis=1, keepdims=True))
      weights /= weights.sum(axis=1, keepdims=True)
      want[b, :, 4 * h : 4 * h + 4] = weights @ v[b, :, h]
  want = want @ params["out"]["kernel"] + params["out"]["bias"]
  np.testing.assert_allclose(
    out, x + want.reshape(x.shape), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ((7, 8, 1), {}, "7 x 8 must be multiples of 2: .* 6 x 8 or 8 x 8"),
    ((28, 28, 1), {"multipliers": (1,) * 4}, "24 x 24 or 32 x 32"),
    ((1, 1, 1), {}, "the nearest is 2 x 2"),
  ],
)
def test_sizes_that_cannot_be_halved_are_refused(shape, options, message):
  net = UNet(**{**SMALL, **options})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), *inputs(shape))


def test_classes_missing_or_unexpected_are_refused():
  x, t = inputs((8, 8, 1))
  with pytest.raises(ValueError, match="num_classes=10 was called with no"):
    UNet(**SMALL, num_classes=10).init(jax.random.key(0), x, t)
  with pytest.raises(ValueError, match=r"y have shape \(\d, 1\): pass one num"):
    column = jnp.zeros((len(x), 1), jnp.int32)
    UNet(**SMALL, num_classes=10).init(jax.random.key(0), x, t, {"y": column})
  with pytest.raises(ValueError, match="num_classes=None was called with cl"):
    UNet(**SMALL).init(jax.random.key(0), x, t, {"y": t})
  with pytest.raises(ValueError, match="condition is a .*; pass a dict of y"):
    UNet(**SMALL).init(jax.random.key(0), x, t, t)
  with pytest.raises(ValueError, match="'label' is not one of y, low_res"):
    UNet(**SMALL).init(jax.random.key(0), x, t, {"label": t})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"resample": "pool"}, "resample='pool' is not one of"),
    ({"padding": "valid"}, "padding='valid' is not one of"),
    ({"embedding": "sines"}, "embedding='sines' is not one of"),
    ({"qkv_order": "kqv"}, "qkv_order='kqv' is not one of"),
    ({"attention_levels": (2,)}, "has 2; the levels are 0..1"),
    ({"dropout": (0.1, 0.2, 0.3)}, "one for each of the 2 levels"),
    ({"heads": 3}, "16 channels cannot have heads=3"),
    ({"head_channels": 12}, "16 channels cannot have .* head_channels=12"),
  ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
  net = UNet(**{**SMALL, **options})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), *inputs((8, 8, 1)))


def test_dropout_may_differ_by_level():
  x, t = inputs((8, 8, 1))
  call, params, *_ = make(dropout=(0.0, 0.5))
  f = lambda key: call(params, x, t, train=True, rngs={"dropout": key})
  assert np.abs(f(jax.random.key(1)) - f(jax.random.key(2))).max() > 1e-3
  still, *_ = make(dropout=(0.0, 0.0))
  g = lambda key: still(params, x, t, train=True, rngs={"dropout": key})
  np.testing.assert_array_equal(g(jax.random.key(1)), g(jax.random.key(2)))


def test_low_resolution_images_join_the_input():
  net = UNet(**SMALL, out_channels=3)
  x, t = inputs((8, 8, 3))
  cond = {"low_res": jnp.zeros((2, 4, 4, 3))}
  out, made = jax.eval_shape(
    net.init_with_output, jax.random.key(0), x, t, cond
  )
  assert made["params"]["Conv_0"]["kernel"].shape == (3, 3, 6, 8)
  assert out.shape == (2, 8, 8, 3)


# ------------------------------------------------------------ convolutions


def written(x, kernel, strides=None, padding="SAME"):
  size = "DHW"[5 - x.ndim :]
  return jax.lax.conv_general_dilated(
    x, kernel, strides or (1,) * len(size), padding,
    dimension_numbers=(f"N{size}C", f"{size}IO", f"N{size}C"),
  )  # fmt: skip


def assert_same_to_all_derivatives(ours, theirs, x, kernel):
  g = functools.partial(jnp.tensordot, jnp.arange(5.0), axes=(0, x.ndim - 1))

  @functools.partial(jax.jit, static_argnums=0)
  def everything(conv, x, kernel):
    loss = lambda x, kernel: (g(conv(x, kernel)) ** 2).sum()
    gradient = jax.grad(loss, (0, 1))
    alone = lambda x: gradient(x[None], kernel)
    return (
      conv(x, kernel),
      jax.jvp(conv, (x, kernel), (x[::-1], kernel[::-1])),
      gradient(x, kernel),
      jax.jvp(gradient, (x, kernel), (x[::-1], kernel[::-1])),  # second order
      jax.grad(lambda x: jax.grad(loss)(x, kernel).sum())(x),
      jax.vmap(alone)(x),
    )

  for a, b in zip(
    jax.tree.leaves(everything(ours, x, kernel)),
    jax.tree.leaves(everything(theirs, x, kernel)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize(
  ("strides", "padding", "size"),
  [
    ((1, 1), "SAME", (8, 6)),
    ((2, 2), "SAME", (8, 6)),
    ((2, 2), ((1, 1), (1, 1)), (8, 6)),
    ((1, 1), "VALID", (8, 6)),
    # Each phase of these has another size, other taps, or none.
    ((2, 3), ((0, 2), (1, 0)), (7, 5)),
    ((2, 4), "VALID", (9, 7)),
    ((2,), ((0, 2),), (7,)),
    ((2, 1, 2), "SAME", (4, 2, 3)),
    ((1, 1, 1), ((0, 2), (1, 0), (1, 1)), (2, 3, 4)),
  ],
)
def test_convolutions_and_all_derivatives_are_xlas(strides, padding, size):
  x = jax.random.normal(jax.random.key(0), (3, *size, 4))
  kernel = jax.random.normal(jax.random.key(1), (*(3,) * len(size), 4, 5))
  assert_same_to_all_derivatives(
    lambda x, k: convolution.conv_general_dilated(x, k, strides, padding),
    lambda x, k: written(x, k, strides, padding),
    x,
    kernel,
  )


@pytest.mark.parametrize("size", [(4, 3), (1, 2), (3,), (2, 1, 2)])
def test_upsampling_and_convolving_is_convolving_and_interleaving(size):
  x = jax.random.normal(jax.random.key(0), (3, *size, 4))
  kernel = jax.random.normal(jax.random.key(1), (*(3,) * len(size), 4, 5))
  assert_same_to_all_derivatives(
    convolution.conv_of_upsampled,
    lambda x, kernel: written(resampling.upsample(x), kernel),
    x,
    kernel,
  )


def test_where_upsampling_cannot_be_folded_in_it_is_done():
  x = jax.random.normal(jax.random.key(0), (3, 4, 3, 4))
  for shape, strides, padding in [
    ((5, 5), (1, 1), "SAME"), ((3, 3), (2, 1), "SAME"),
    ((3, 3), (1, 1), "VALID"), ((3, 3), (1, 1), ((2, 0), (1, 1))),
  ]:  # fmt: skip
    kernel = jax.random.normal(jax.random.key(1), (*shape, 4, 5))
    ours = convolution.conv_of_upsampled(x, kernel, strides, padding)
    theirs = written(resampling.upsample(x), kernel, strides, padding)
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())
  for settings in ({"rhs_dilation": (2, 2)}, {"feature_group_count": 2}):
    groups = settings.get("feature_group_count", 1)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4 // groups, 6))
    ours = convolution.conv_of_upsampled(x, kernel, **settings)
    theirs = jax.lax.conv_general_dilated(
      resampling.upsample(x), kernel, (1, 1), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_in_a_loop_are_what_a_cpu_has_fast_code_for(rank):
  # XLA lets these pass in a loop only as they are: examples, size, channels; a
  # kernel with size, in, out; strides of 1. It is slow for volumes anywhere.
  def loss(kernel, x):
    for stride in (1, 2):
      x = convolution.conv_general_dilated(x, kernel, (stride,) * rank, "SAME")
    return (convolution.conv_of_upsampled(x, kernel) ** 2).sum()

  def train(kernel, x):
    body = lambda k, _: (k - 1e-3 * jax.grad(loss)(k, x), None)
    return jax.lax.scan(body, kernel, None, length=3)[0]

  shapes = jnp.zeros((*(3,) * rank, 4, 4)), jnp.zeros((2, *(8,) * rank, 4))
  program = jax.jit(train).lower(*shapes).as_text()
  found = re.findall(
    r"stablehlo.convolution.*?dim_numbers = (.*?), window = \{(.*?)\}", program
  )
  # Of the image that is halved, of the one that is doubled.
  phases = 2**rank + 2**rank
  # Forward and the kernels' gradients; nobody asks for the first image's.
  several = 2 * (1 + phases) + phases
  # Three of the slices' convolutions equal others, and are one function.
  assert len(found) == several - 3 * (rank == 3)
  size = ", ".join(map(str, range(min(rank, 2))))
  for dims, window in found:
    assert dims == f"[b, {size}, f]x[{size}, i, o]->[b, {size}, f]"
    assert not re.search(r"dilate = \[[^\]]*[2-9]|reverse = \[true", window)


def test_accelerators_get_the_convolution_that_they_know(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))

  def names(function):
    program = jax.make_jaxpr(function)(x, kernel)
    return [equation.primitive.name for equation in program.eqns]

  for strides in ((1, 1), (2, 2)):
    alone = lambda x, k, strides=strides: convolution.conv_general_dilated(
      x, k, strides, "SAME"
    )
    assert names(alone) == ["conv_general_dilated"]
  *_, last = names(convolution.conv_of_upsampled)
  assert last == "conv_general_dilated"


@pytest.mark.parametrize("make", [
  functools.partial(UNet, **SMALL), functools.partial(DiT, 4, 8, 1, 2),
])  # fmt: skip
def test_a_network_of_spans_begins_as_one_without(make):
  x, t, s = jnp.ones((2, 8, 8, 1)), jnp.array([3.0, 5.0]), jnp.array([1.0, 2.0])
  plain, spans = make(), make(spans=True)
  params = jax.jit(spans.init)(jax.random.key(0), x, t)["params"]
  applied = jax.jit(spans.apply)
  # No layer is silent but the span's last.
  params = {
    name: part if name == "span2" else jax.tree.map(lambda x: x + 0.1, part)
    for name, part in params.items()
  }
  old = {k: v for k, v in params.items() if not k.startswith("span")}
  want = jax.jit(plain.apply)({"params": old}, x, t)
  for cond in (None, {"s": s}):
    got = applied({"params": params}, x, t, cond)
    np.testing.assert_allclose(got, want, rtol=1e-5)
  params["span2"] = jax.tree.map(lambda x: x + 0.1, params["span2"])
  apart, instant, alone = (
    applied({"params": params}, x, t, cond)
    for cond in ({"s": s}, {"s": t}, None)
  )
  np.testing.assert_array_equal(instant, alone)
  assert abs(apart - instant).max() > 1e-4
  with pytest.raises(ValueError, match="without spans was called with a sec"):
    plain.init(jax.random.key(0), x, t, {"s": s})
