"""Transformers in pixel space, and networks by name."""

import json
import math
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from commands import command, params_of, refused
from jax.extend import core

import diffusion_jax as dj
from diffusion_jax.models import backbone, named, transformer
from diffusion_jax.models.dit import DIT, JIT, DiT, JiT, dropout_rates
from diffusion_jax.runs import directory, networks
from experiments import export_weights, sample, train
from experiments.configs import common, digits

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


def shapes(net, size, channels, **cond):
  x, t = jnp.zeros((1, *size, channels)), jnp.ones(1)
  return jax.eval_shape(
    lambda key: net.init(key, x, t, cond or None), jax.random.key(0)
  )["params"]


def count(net, size, channels, **cond):
  tree = shapes(net, size, channels, **cond)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def filled(tree, seed=0):
  """Parameters of which none is zero."""
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return structure.unflatten(
    [
      0.2 * jax.random.normal(key, leaf.shape)
      for key, leaf in zip(keys, leaves, strict=True)
    ]
  )


# ------------------------------------------------------- the published code


NETWORKS = {
  "dit": DiT(
    patch=4, width=32, depth=2, heads=4, num_classes=6, out_channels=6,
    time_origin=0.0,
  ),
  "jit": JiT(
    patch=4, width=32, depth=3, heads=2, bottleneck=8, class_tokens=3,
    class_start=1, num_classes=6,
  ),
}  # fmt: skip


def published(name):
  numbers = reference.load("transformers")
  mine = {
    key.removeprefix(f"{name}|"): value
    for key, value in numbers.items()
    if key.startswith(f"{name}|")
  }
  tensors = {
    key.removeprefix("weights|"): mine.pop(key)
    for key in list(mine)
    if key.startswith("weights|")
  }
  return mine, tensors


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_published_one(name):
  numbers, tensors = published(name)
  net = NETWORKS[name]
  params = dj.pretrained.from_dit(tensors, net)
  # DiT counts steps from 0; JiT's time is 1 where ours is 0.
  t = numbers["t"] if name == "dit" else 1 - numbers["t"]
  out = net.apply({"params": params}, numbers["x"], t, {"y": numbers["y"]})
  want = numbers["out"]
  np.testing.assert_allclose(out, want, atol=3e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_published_weights_go_back_bit_for_bit(name):
  _, tensors = published(name)
  net = NETWORKS[name]
  back = dj.pretrained.to_dit(
    dj.pretrained.from_dit(tensors, net), net, (16, 16)
  )
  positions = back.pop("pos_embed")
  np.testing.assert_allclose(positions, tensors.pop("pos_embed"), atol=1e-6)
  reference.assert_same(back, tensors)


# DiT's are of latents of 32 x 32 x 4, with a learned variance; patches 2, 4, 8.
DIT_COUNTS = {
  "S": (32_865_056, 32_920_448, 33_142_016),
  "B": (130_315_808, 130_426_496, 130_869_248),
  "L": (457_840_672, 457_988_224, 458_578_432),
  "XL": (674_834_720, 675_000_704, 675_664_640),
}
# In pixels, of 1000 classes and none.
JIT_COUNTS = {
  ("B", 16): 131_123_712, ("B", 32): 133_190_400, ("L", 16): 458_877_664,
  ("H", 16): 952_514_368,
}  # fmt: skip


@pytest.mark.parametrize("name", DIT_COUNTS)
def test_dit_has_its_published_size(name):
  y = jnp.zeros(1, int)
  for patch, params in zip((2, 4, 8), DIT_COUNTS[name], strict=True):
    net = DiT(patch=patch, **DIT[name], num_classes=1001, out_channels=8)
    assert count(net, (32, 32), 4, y=y) == params


@pytest.mark.parametrize(("name", "patch"), JIT_COUNTS)
def test_jit_has_its_published_size(name, patch):
  net = JiT(patch=patch, **JIT[name], num_classes=1001)
  size = (16 * patch, 16 * patch)
  params = count(net, size, 3, y=jnp.zeros(1, int))
  assert params == JIT_COUNTS[name, patch]
  assert params == jit_size(patch=patch, **JIT[name])


def test_jit_g_has_the_size_of_its_sum():
  net = JiT(**JIT["G"], num_classes=1001)
  params = count(net, (256, 256), 3, y=jnp.zeros(1, int))
  assert params == jit_size(patch=16, **JIT["G"])
  assert params == 2_007_130_000


def jit_size(patch, width, depth, heads, bottleneck, class_start):
  """Parameters of JiT, layer by layer; weight and bias are (n + 1) m."""
  del class_start
  hidden, pixels = 8 * width // 3, 3 * patch**2

  def layer(n, m):
    return (n + 1) * m

  block = (
    layer(width, 6 * width) + layer(width, 3 * width) + layer(width, width)
    + layer(width, 2 * hidden) + layer(hidden, width)
    + 2 * width + 2 * (width // heads)
  )  # fmt: skip
  ends = (
    pixels * bottleneck + layer(bottleneck, width) + layer(256, width)
    + layer(width, width) + (1001 + 32) * width
    + width + layer(width, 2 * width) + layer(width, pixels)
  )  # fmt: skip
  return ends + depth * block


# ------------------------------------------------------------- closed forms


def test_patches_come_back_to_the_bit():
  x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
  for patch in (1, 2, 4):
    tokens = transformer.patchify(x, patch)
    assert tokens.shape == (2, 96 // patch**2, 3 * patch**2)
    np.testing.assert_array_equal(
      transformer.unpatchify(tokens, patch, (8, 12)), x
    )
  # The second token is the second patch of the first row.
  second = transformer.patchify(x, 4)[:, 1].reshape(2, 4, 4, 3)
  np.testing.assert_array_equal(second, x[:, :4, 4:8])


def test_scores_of_turned_heads_depend_on_offsets_alone():
  rows, columns, head = 5, 7, 16
  by = transformer.turn((rows, columns), head)
  q, k = jax.random.normal(jax.random.key(0), (2, head))
  everywhere = (1, rows * columns, 1, head)
  q, k = (
    transformer.rotate(jnp.broadcast_to(x, everywhere), by)[0, :, 0]
    for x in (q, k)
  )
  scores = np.asarray(q @ k.T).reshape(rows, columns, rows, columns)
  for down, right in ((0, 0), (1, 0), (0, 2), (2, 3)):
    same = [
      scores[r, c, r + down, c + right]
      for r in range(rows - down)
      for c in range(columns - right)
    ]
    np.testing.assert_allclose(same, same[0], rtol=0, atol=2e-5)
  # Rows and columns are told apart.
  assert abs(scores[0, 0, 1, 0] - scores[0, 0, 0, 1]) > 0.01


def test_tokens_ahead_of_the_image_do_not_turn():
  x = jax.random.normal(jax.random.key(0), (1, 9, 2, 8))
  turned = transformer.rotate(x, transformer.turn((2, 3), 8, ahead=3))
  np.testing.assert_array_equal(turned[:, :4], x[:, :4])  # and place (0, 0)
  np.testing.assert_array_equal(
    turned[:, 3:], transformer.rotate(x[:, 3:], transformer.turn((2, 3), 8))
  )


def test_positions_are_columns_then_rows():
  where = transformer.sin_cos((2, 3), 8).reshape(2, 3, 8)
  np.testing.assert_array_equal(where[0, :, :4], where[1, :, :4])
  np.testing.assert_array_equal(where[:, 0, 4:], where[:, 2, 4:])
  angles = np.array([2, 2 / 100])  # column 2; frequencies 1 and 10000^(-1/2)
  np.testing.assert_allclose(
    where[1, 2, :4], [*np.sin(angles), *np.cos(angles)], atol=1e-7
  )


def test_dropout_is_of_the_middle_half():
  np.testing.assert_allclose(
    dropout_rates(8, 0.25), [0, 0, *4 * [0.25], 0, 0], atol=0
  )


# --------------------------------------------------------------- invariances


@pytest.mark.parametrize("make", [DiT, JiT])
def test_a_new_network_predicts_zero(make):
  net = make(**SMALL, num_classes=3, class_start=1)
  x = jax.random.normal(jax.random.key(0), (2, 4, 6, 1))
  cond = {"y": jnp.array([0, 2])}
  params = net.init(jax.random.key(1), x, jnp.ones(2), cond)
  out = net.apply(params, x, jnp.array([1.0, 9.0]), cond)
  np.testing.assert_array_equal(out, jnp.zeros((2, 4, 6, 1)))


def block(depth=None):
  make = transformer.Block if depth is None else transformer.stack(
    transformer.Block, depth
  )  # fmt: skip
  return make(2, 32, mlp="swiglu", norm="rms", qk_norm=True)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_loop_of_blocks_is_one_block_after_another(depth):
  x = jax.random.normal(jax.random.key(0), (2, 6, 16))
  c = jax.random.normal(jax.random.key(1), (2, 16))
  by = transformer.turn((2, 3), 8)
  net = block(depth)
  tree = jax.eval_shape(
    lambda key: net.init(key, x, c, by, None), jax.random.key(2)
  )
  params = filled(tree["params"])
  looped = jax.jit(
    lambda params: net.apply({"params": params}, x, c, by, None)[0]
  )(params)

  @jax.jit
  def unrolled(params):
    h = x
    for n in range(depth):
      one = jax.tree.map(lambda leaf, n=n: leaf[n], params)
      h, _ = block().apply({"params": one}, h, c, by)
    return h

  if depth == 1:
    np.testing.assert_array_equal(looped, unrolled(params))
  np.testing.assert_allclose(looped, unrolled(params), atol=1e-5)


def test_every_block_drops_other_numbers_and_none_at_rate_zero():
  x, c = jnp.zeros((1, 64, 16)), jnp.zeros((1, 16))
  net = block(2)
  tree = jax.eval_shape(
    lambda key: net.init(key, x, c, None, None), jax.random.key(0)
  )
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree["params"])
  # Each block adds ones, of which some are dropped.
  params["out"]["bias"] += 1
  gate = params["modulation"]["bias"].at[:, 32:48].set(1)
  params["modulation"]["bias"] = gate

  def run(rates):
    keys = {"dropout": jax.random.key(3)}
    return net.apply({"params": params}, x, c, None, rates, rngs=keys)[0]

  np.testing.assert_array_equal(run(None), jnp.full(x.shape, 2.0))
  np.testing.assert_array_equal(run(jnp.zeros(2)), run(None))
  dropped = run(jnp.full(2, 0.5))
  shares = [float((dropped == n).mean()) for n in (0, 2, 4)]
  # Of 1024 numbers; a standard error is at most 0.016.
  np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.06)
  assert not set(np.unique(run(jnp.array([0.5, 0.0])))) - {1.0, 3.0}


def test_memory_saved_changes_nothing():
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))
  nets = [DiT(**SMALL, remat=remat) for remat in (False, True)]
  params = filled(shapes(nets[0], (4, 4), 1))
  whole, saved = (
    jax.jit(
      jax.grad(
        lambda p, net=net: net.apply({"params": p}, x, jnp.ones(1)).sum()
      )
    )(params)
    for net in nets
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    whole, saved,
  )  # fmt: skip


def test_half_precision_is_of_the_activations_alone():
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  args = (x, jnp.array([1.0, 500.0]), {"y": jnp.array([0, 1])})
  settings = {**SMALL, "num_classes": 2, "class_start": 1}
  nets = [JiT(**settings, dtype=dtype) for dtype in ("float32", "bfloat16")]
  tree = shapes(nets[1], (8, 8), 1, y=jnp.zeros(1, int))
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"float32"}
  params = filled(tree)
  full, half = (jax.jit(net.apply)({"params": params}, *args) for net in nets)
  assert half.dtype == jnp.float32
  assert 0 < jnp.abs(full - half).max() < 0.05 * jnp.abs(full).max()


def test_small_pictures_and_their_noise_are_seen():
  net = DiT(**SMALL, noisy_low_res=True)
  x, low = jnp.ones((1, 8, 8, 1)), jnp.zeros((1, 4, 4, 1))
  cond = {"low_res": low, "low_res_t": jnp.zeros(1, int)}
  params = {"params": filled(shapes(net, (8, 8), 1, **cond))}
  outs = [
    net.apply(params, x, jnp.ones(1), {**cond, **change})
    for change in ({}, {"low_res": low + 1}, {"low_res_t": jnp.ones(1, int)})
  ]
  assert not np.allclose(outs[0], outs[1]) and not np.allclose(*outs[::2])
  with pytest.raises(ValueError, match="noisy_low_res=True was called without"):
    net.apply(params, x, jnp.ones(1), {"low_res": low})


def test_what_was_done_to_a_picture_is_seen():
  net = DiT(**SMALL, augment_labels=9)
  x, t = jnp.ones((1, 8, 8, 1)), jnp.ones(1)
  params = {"params": filled(shapes(net, (8, 8), 1))}
  one = {"augment": jnp.eye(9)[:1]}
  plain, same, augmented = (
    net.apply(params, x, t, cond)
    for cond in (None, {"augment": jnp.zeros((1, 9))}, one)
  )
  np.testing.assert_array_equal(plain, same)
  assert not np.allclose(plain, augmented)


@pytest.mark.parametrize("make", [DiT, JiT])
def test_mean_flow_learns_with_a_transformer(make):
  # One derivative forward, by both times, and one back through it.
  net = make(
    **SMALL, class_start=1, spans=True, time_scale=1.0, time_origin=0.0
  )
  z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  t, s = jnp.array([0.7, 0.5]), jnp.array([0.2, 0.5])
  params = filled(shapes(net, (8, 8), 1, s=s[:1]))

  def loss(params):
    zero = jnp.zeros_like(s)
    U, dU_dt = jax.jvp(
      lambda z, t, s: net.apply({"params": params}, z, t, {"s": s}),
      (z, t, s), (z, zero + 1, zero),
    )  # fmt: skip
    target = z - dj.process.per_example(t - s, z) * dU_dt
    return ((U - jax.lax.stop_gradient(target)) ** 2).mean()

  gradient = jax.jit(jax.grad(loss))(params)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
  assert abs(gradient["span2"]["kernel"]).max() > 0


def equations(jaxpr):
  """Equations of a program, and of the programs in it."""
  return sum(
    1 + sum(map(equations, core.jaxprs_in_params(equation.params)))
    for equation in jaxpr.eqns
  )


def step_equations(depth):
  # global_norm has one sum for each shape: sizes here are such that no two
  # arrays have the same shape at one depth and not at the other.
  schedule = dj.schedules.cosine(10)
  net = JiT(**{**SMALL, "depth": depth}, class_start=1, num_classes=5,
            dropout=0.1)  # fmt: skip

  def apply(params, x_t, t, cond, key):
    return net.apply(
      {"params": params}, x_t, t, cond, train=True, rngs={"dropout": key}
    )

  objective = dj.objectives.diffusion(
    apply, schedule, target=dj.targets.x0,
    condition=lambda batch, key, step: {"y": batch["label"]},
  )  # fmt: skip
  tx = dj.training.optimizer(lr=1e-3)
  params = shapes(net, (4, 4), 1, y=jnp.zeros(1, int))
  state = jax.eval_shape(lambda p: dj.state.create(p, tx, (0.9,)), params)
  batch = {"image": jnp.zeros((2, 4, 4, 1)), "label": jnp.zeros(2, int)}
  program = jax.make_jaxpr(
    lambda *args: dj.training.train_step(*args, objective=objective, tx=tx)
  )(state, batch, jax.random.key(0))
  return equations(program.jaxpr)


def test_a_step_is_no_larger_a_program_for_a_deep_network():
  assert step_equations(24) == step_equations(4) > 500


# ---------------------------------------------------------- networks by name


def example(tmp_path):
  """The network of docs/networks.md, in a file."""
  page = (ROOT / "docs" / "networks.md").read_text()
  (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
  assert len(code.splitlines()) <= 30
  path = tmp_path / "mine.py"
  path.write_text(code)
  return f"{path}:MyNet"


SHORT = (
  "--config=configs/digits.py:smoke", "--config.num_steps=2",
  "--config.preview.num=0", "--config.batch_size=8",
)  # fmt: skip


def test_a_network_of_ones_own_takes_every_clock(tmp_path):
  path, _, name = example(tmp_path).rpartition(":")
  names = {}
  exec(pathlib.Path(path).read_text(), names)
  # Of EDM's least noise, of the straight path, of 1,000 steps.
  t, x = jnp.array([np.log(0.002) / 4, 0, 1, 1000]), jnp.ones((4, 4, 4, 3))
  out, _ = names[name]().init_with_output(jax.random.key(0), x, t)
  assert np.isfinite(out).all()


def test_a_network_of_ones_own_trains_and_draws(tmp_path):
  workdir = tmp_path / "run"
  command(
    train, *SHORT, f"--workdir={workdir}", "--config.label_dropout=0.5",
    f"--config.model.name={example(tmp_path)}", "--config.model.width=8",
    "--config.model.num_classes=10",
  )  # fmt: skip
  model = json.loads((workdir / "config.json").read_text())["model"]
  assert model["width"] == 8 and "channels" not in model
  assert params_of(workdir)["Embed_0"]["embedding"].shape == (11, 8)
  out = tmp_path / "drawn.npz"
  command(
    sample, f"--workdir={workdir}", "--num=2", "--classes=3", "--guidance=2",
    "--steps=2", f"--out={out}",
  )  # fmt: skip
  assert np.load(out)["images"].shape == (2, 8, 8, 1)


def test_a_transformer_trains_draws_and_is_exported(tmp_path, capsys):
  workdir = tmp_path / "run"
  flags = (
    *SHORT, f"--workdir={workdir}", "--config.model.name=jit",
    "--config.model.patch=2", "--config.model.width=16",
    "--config.model.depth=2", "--config.model.heads=2",
    "--config.model.class_start=1", "--config.model.class_tokens=2",
    "--config.model.bottleneck=4", "--config.model.num_classes=10",
    "--config.model.dropout=0.1", "--config.label_dropout=0.5",
  )  # fmt: skip
  command(train, *flags, "--dry_run")
  assert "FLOP per image" in capsys.readouterr().out
  command(train, *flags)
  command(
    sample, f"--workdir={workdir}", "--num=2", "--classes=3", "--guidance=2",
    "--steps=2", f"--out={tmp_path / 'drawn.npz'}",
  )  # fmt: skip
  out = tmp_path / "weights.safetensors"
  command(
    export_weights, f"--workdir={workdir}", "--format=dit", "--ema=raw",
    f"--out={out}",
  )  # fmt: skip
  config, data = directory.load(workdir)
  net = networks.model(config, tuple(data["image_shape"]), 10)
  read = dj.pretrained.from_dit(dj.pretrained.read(out), net)
  jax.tree.map(np.testing.assert_array_equal, read, params_of(workdir))
  for form, words in (
    ("diffusers", "no such JiT; use --format=dit"), ("openai", "is of U-Nets"),
  ):  # fmt: skip
    line = refused(
      capsys, export_weights, f"--workdir={workdir}", f"--format={form}",
      f"--out={tmp_path / 'x.pt'}",
    )  # fmt: skip
    assert words in line


@pytest.mark.parametrize(
  ("net", "advice"),
  [
    (dj.models.DiT(), "; use --format=dit"),
    (dj.models.Classifier(num_labels=2), "; use --format=openai"),
    (dj.models.EDM2(), ""),
  ],
)
def test_a_layout_that_is_advised_has_the_network(net, advice, tmp_path):
  message = f"diffusers has no such {type(net).__name__}{advice}$"
  with pytest.raises(ValueError, match=message):
    export_weights.to_diffusers(tmp_path / "out", None, net, None, (8, 8, 3))


def test_a_configuration_has_the_settings_of_its_network():
  old = common.make(model={"channels": 8}).to_dict()
  assert old["model"]["name"] == "unet"
  del old["model"]["name"]  # as runs had it before there were others
  assert common.make(**old).model.name == "unet"
  for name in ("unet", "dit", "jit"):
    made = common.make(model={"name": name}).model
    fields = set(named.settings(named.find(name)))
    assert set(made) == fields | {"name", "num_classes"}
  config = digits.get_config("classes")
  config.model.dtype = "bfloat16"
  common.exchange_network(config, "dit")
  assert config.model.num_classes == 10 and config.model.dtype == "bfloat16"
  assert config.model.patch == 2 and "channels" not in config.model


def test_every_network_is_a_backbone():
  for made in (dj.UNet(), dj.models.Classifier(), DiT(), JiT()):
    assert isinstance(made, backbone.Backbone)
    assert set(made.takes) <= set(backbone.PARTS)


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"patch": 3}, "of 3 x 3; 8 x 12 must be multiples of 3: .* 6 x 12 or 9 x"),
    ({"width": 18}, "width=18 must be a multiple of 4 and of 2"),
    ({"width": 12, "rope": True}, "of 8, for heads=2 with rope"),
    ({"norm": "batch"}, "norm='batch' is not one of layer, rms"),
    ({"mlp": "relu"}, "mlp='relu' is not one of gelu, swiglu"),
    ({"depth": 0}, "depth=0 must be at least 1"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"class_tokens": 1, "class_start": 2}, r"class_start=2 .* block, 0..1"),
    ({"dtype": "int8"}, "dtype=int8 is not float32"),
  ],
)
def test_bad_settings_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    DiT(**{**SMALL, **changes}).check_size((8, 12))
  assert "\n" not in str(error.value)


def bad_file(tmp_path, code):
  (tmp_path / "mine.py").write_text(code)
  return str(tmp_path / "mine.py")


LINEN = "import flax.linen as nn\nclass MyNet(nn.Module):\n"


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("1 / 0", "mine.py:MyNet: ZeroDivisionError: division by zero"),
    ("x = 1", "AttributeError: .* has no attribute 'MyNet'"),
    ("MyNet = 3", "is no class of flax.linen.Module"),
    (f"{LINEN}  width: int = 3", "has no field 'out_channels', .* to be 1"),
    (f"{LINEN}  out_channels: int = 3", "has no takes and no check_size"),
    (f"{LINEN}  out_channels: int", "has no takes and no check_size"),
    (
      f"{LINEN}  out_channels: int = 3\n  takes = ()\n"
      "  def check_size(self, size): pass",
      "cannot be conditioned on 'low_res'; it takes nothing",
    ),
  ],
)
def test_a_bad_network_of_ones_own_is_one_line(code, message, tmp_path):
  with pytest.raises(ValueError, match=message) as error:
    named.make(
      f"{bad_file(tmp_path, code)}:MyNet", {"out_channels": 1}, (8, 8),
      ("low_res",),
    )  # fmt: skip
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["name=vit"], "'vit' is not one of unet, dit, jit"),
    (["name=no.py:Net"], "there is no file"),
    (["name=dit", "channels=8"], "unknown configuration key .*channels"),
    (["name=dit", "patch=3"], "8 x 8 must be multiples of 3"),
    (["name=classifier"], "is not a network of this configuration"),
    (["patch=2"], "unknown configuration key .*patch"),
  ],
)
def test_settings_of_another_network_are_refused(flags, message, capsys):
  flags = [f"--config.model.{flag}" for flag in flags]
  line = refused(capsys, train, *SHORT[:1], *flags, "--dry_run")
  assert re.search(message, line), line


def test_weights_of_other_networks_are_refused():
  _, tensors = published("dit")
  with pytest.raises(
    ValueError, match=r"\(model.name=dit or jit\), and .* is a UNet"
  ):
    dj.pretrained.from_dit(tensors, dj.UNet())
  with pytest.raises(ValueError, match="the network is a DiT"):
    dj.pretrained.from_openai(tensors, NETWORKS["dit"])
  with pytest.raises(ValueError, match="pos_embed .* not the sines"):
    learned = tensors["pos_embed"] + 1
    dj.pretrained.from_dit({**tensors, "pos_embed": learned}, NETWORKS["dit"])
  with pytest.raises(ValueError, match="pos_embed .* not the sines"):
    near = tensors["pos_embed"][..., ::-1]
    dj.pretrained.from_dit({**tensors, "pos_embed": near}, NETWORKS["dit"])
  with pytest.raises(ValueError, match="pos_embed .* not the sines"):
    flat = {**tensors, "pos_embed": tensors["pos_embed"].ravel()}
    dj.pretrained.from_dit(flat, NETWORKS["dit"])
  wider = NETWORKS["dit"].clone(width=2 * NETWORKS["dit"].width)
  with pytest.raises(ValueError, match="_embedder.* in the weights; the netw"):
    dj.pretrained.from_dit(tensors, wider)
  with pytest.raises(ValueError, match="missing from .* blocks.1.attn.proj"):
    short = {k: v for k, v in tensors.items() if k != "blocks.1.attn.proj.bias"}
    dj.pretrained.from_dit(short, NETWORKS["dit"])
  with pytest.raises(ValueError, match="norm='rms'; in DiT's code"):
    dj.pretrained.from_dit(tensors, DiT(norm="rms"))
  with pytest.raises(
    ValueError, match="16 x 32; in DiT's code they are square"
  ):
    dj.pretrained.to_dit({}, NETWORKS["dit"], (16, 32))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.torch
def test_weights_in_half_precision_are_imported(dtype, suffix, tmp_path):
  pytest.importorskip("safetensors" if suffix == ".safetensors" else "torch")
  _, tensors = published("dit")
  net = NETWORKS["dit"]
  halves = {k: np.asarray(v, jnp.dtype(dtype)) for k, v in tensors.items()}
  dj.pretrained.write(tmp_path / f"a{suffix}", halves)
  back = dj.pretrained.from_dit(
    dj.pretrained.read(tmp_path / f"a{suffix}"), net
  )
  want = dj.pretrained.from_dit(tensors, net)
  chex.assert_trees_all_close(back, want, rtol=1e-2, atol=1e-2)
