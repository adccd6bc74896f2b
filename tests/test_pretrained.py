"""The published networks' outputs, from the published names of the weights.

tests/data/networks.npz holds what OpenAI's code returned for weights that a
rule makes (``reference.weights``), tests/data/diffusers.npz what diffusers'
``UNet2DModel`` 0.42.1 returned.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import network, weights

from diffusion_jax.models import UNet
from diffusion_jax.models.presets import PRESETS
from diffusion_jax.pretrained import (
  diffusers_config,
  from_diffusers,
  from_openai,
  from_tensorflow,
  tensorflow,
  to_diffusers,
  to_openai,
  to_tensorflow,
)

CASES = reference.notes("networks")
DIFFUSERS = reference.notes("diffusers")


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_published_codes(name):
  case, numbers = CASES[name], reference.load("networks")
  net = network(case)
  params = from_openai(weights(case["shapes"]), net)
  cond = {} if net.num_classes is None else {"y": numbers["y"]}
  if case["class"] == "SuperResModel":
    cond["low_res"] = numbers["low_res"]
  # Published networks count from 0.
  out = jax.jit(net.apply)(
    {"params": params}, numbers["x"], numbers["t"] + 1, cond or None
  )
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
  cond = {} if net.num_classes is None else {"y": one}
  if CASES[name]["class"] == "SuperResModel":
    cond["low_res"] = x
  shapes = jax.eval_shape(
    lambda key: net.init(key, x, one, cond or None)["params"], jax.random.key(0)
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


def test_tensors_of_another_shape_or_type_are_named():
  net = network(CASES["plain"])
  published = weights(CASES["plain"]["shapes"])
  name = "time_embed.0.weight"
  wrong = published | {name: published[name].T}
  with pytest.raises(ValueError, match=rf"{name} is \(32, 128\) in .* \(128, "):
    from_openai(wrong, net)
  wrong = published | {name: published[name].astype(np.int32)}
  with pytest.raises(ValueError, match=rf"{name} is int32; weights are float"):
    from_openai(wrong, net)
  name = "input_blocks.0.0.weight"
  wrong = published | {name: published[name][..., 0]}
  with pytest.raises(ValueError, match=rf"{name} is \(32, 3, 3\)"):
    from_openai(wrong, net)


def test_halves_become_float32():
  net = network(CASES["plain"])
  published = weights(CASES["plain"]["shapes"])
  halves = {name: x.astype(np.float16) for name, x in published.items()}
  back = to_openai(from_openai(halves, net), net)
  for name, half in halves.items():
    assert back[name].dtype == np.float32
    np.testing.assert_array_equal(back[name], half)


def test_a_network_that_openai_would_run_wrongly_is_refused():
  net = network(CASES["plain"]).clone(epsilon=1e-6)
  published = weights(CASES["plain"]["shapes"])
  with pytest.raises(
    ValueError, match="epsilon=1e-06; in OpenAI's code .*1e-05"
  ):
    from_openai(published, net)


@pytest.mark.parametrize("extra", ["noisy_low_res", "spans"])
def test_a_network_with_further_inputs_is_refused(extra):
  net = network(CASES["plain"]).clone(groups=None, **{extra: True})
  with pytest.raises(ValueError, match=f"{extra}=True, which has no counter"):
    to_openai({}, net)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_outputs_are_those_of_diffusers(name):
  case, numbers = DIFFUSERS[name], reference.load("diffusers")
  net = UNet(**diffusers_config.settings(case["config"]))
  params = from_diffusers(weights(case["shapes"]), net)
  cond = None if net.num_classes is None else {"y": numbers["y"]}
  out = jax.jit(net.apply)(
    {"params": params}, numbers["x"], numbers["t"] + 1, cond
  )
  np.testing.assert_allclose(out, numbers[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("order", ["qkv", "heads"])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_out_and_back_is_exact(name, order):
  case = DIFFUSERS[name]
  net = UNet(**diffusers_config.settings(case["config"]) | {"qkv_order": order})
  published = weights(case["shapes"])
  back = to_diffusers(from_diffusers(published, net), net)
  assert back.keys() == published.keys()
  for key, tensor in published.items():
    np.testing.assert_array_equal(back[key], tensor)
  config = diffusers_config.config(net, (8, 8, 3))
  for key in case["config"].keys() | config.keys():
    default = diffusers_config.DEFAULTS.get(key)
    assert config.get(key, default) == case["config"].get(key, default)


def test_the_order_of_q_k_and_v_changes_no_output():
  # The fused layer's columns are permuted with the way they are read.
  case, numbers = DIFFUSERS["heads"], reference.load("diffusers")
  net = UNet(
    **diffusers_config.settings(case["config"]) | {"qkv_order": "heads"}
  )
  params = from_diffusers(weights(case["shapes"]), net)
  out = jax.jit(net.apply)({"params": params}, numbers["x"], numbers["t"] + 1)
  np.testing.assert_allclose(out, numbers["heads"], rtol=1e-4, atol=2e-5)


def test_names_of_attention_from_before_2023_are_known():
  case = DIFFUSERS["ddpm"]
  net = UNet(**diffusers_config.settings(case["config"]))
  published = weights(case["shapes"])
  old = {
    name.replace("to_q", "query")
    .replace("to_k", "key")
    .replace("to_v", "value")
    .replace("to_out.0", "proj_attn"): tensor
    for name, tensor in published.items()
  }
  assert "mid_block.attentions.0.proj_attn.bias" in old
  new = from_diffusers(published, net)
  jax.tree.map(np.testing.assert_array_equal, from_diffusers(old, net), new)


BAD_UNETS = {
  "_class_name": "UNet2DConditionModel",
  "encoder_hid_dim": 3,  # no setting of UNet2DModel
  "act_fn": "relu",
  "add_attention": False,
  "attn_norm_num_groups": 8,
  "center_input_sample": True,
  "class_embed_type": "timestep",
  "downsample_padding": 2,
  "freq_shift": 0,
  "mid_block_scale_factor": 2,
  "mid_block_type": None,
  "resnet_time_scale_shift": "scale_shift",  # mid attention without a norm
  "time_embedding_dim": 64,
  "time_embedding_type": "fourier",
  "up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"],
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
  "downsample_type": "resnet",
  "upsample_type": "kernel",
}


@pytest.mark.parametrize("key", BAD_UNETS)
def test_a_unet_setting_that_ours_lacks_is_refused(key):
  config = DIFFUSERS["ddpm"]["config"] | {key: BAD_UNETS[key]}
  name = "attn_norm" if key == "resnet_time_scale_shift" else key
  with pytest.raises(ValueError, match=name):
    diffusers_config.settings(config)


BAD_NETS = {
  "multipliers": (0.5, 1, 1),
  "time_scale": 0.25,
  "groups": None,
  "dropout": (0.0, 0.0, 0.1),
  "heads": 2,
}


@pytest.mark.parametrize("name", BAD_NETS)
def test_a_network_that_diffusers_lacks_is_refused(name):
  net = UNet(**diffusers_config.settings(DIFFUSERS["ddpm"]["config"]))
  net = net.clone(**{name: BAD_NETS[name]}, attention_levels=(0, 1))
  with pytest.raises(ValueError, match=f"model.{name}=.* no .*counterpart"):
    diffusers_config.config(net, (8, 8, 3))


PROCESSES = {
  # Of google/ddpm-cifar10-32 but for the optional keys.
  "ddpm": (
    {"beta_schedule": "linear", "variance_type": "fixed_large"},
    {
      "schedule": {
        "name": "linear", "T": 1000, "scale": False,
        "beta_start": 1e-4, "beta_end": 0.02,
      },
      "target": "eps",
      "variance": "fixed_large",
    },
  ),
  "cosine": (
    {
      "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50,
      "prediction_type": "v_prediction", "variance_type": "learned_range",
    },
    {
      "schedule": {"name": "cosine", "T": 50},
      "target": "v",
      "variance": "learned_range",
    },
  ),
  "quadratic": (
    {
      "beta_schedule": "scaled_linear", "beta_start": 0.001,
      "prediction_type": "sample",
    },
    {
      "schedule": {
        "name": "quadratic", "T": 1000, "beta_start": 0.001, "beta_end": 0.02,
      },
      "target": "x0",
      "variance": "fixed_small",
    },
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSES)
def test_a_scheduler_is_translated_there_and_back(name):
  theirs, ours = PROCESSES[name]
  assert diffusers_config.process(theirs) == ours
  back = diffusers_config.scheduler(**ours)
  assert back.items() >= theirs.items()
  assert diffusers_config.process(back) == ours


def test_a_scheduler_that_does_not_say_its_variance():
  config = {"_class_name": "DDIMScheduler", "clip_sample": True}
  assert "variance" not in diffusers_config.process(config)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("_class_name", "EulerDiscreteScheduler"),
    ("beta_schedule", "sigmoid"),
    ("variance_type", "learned"),
    ("prediction_type", "flow"),
    ("trained_betas", [0.1]),
    ("thresholding", True),
  ],
)
def test_a_process_that_ours_lacks_is_refused(key, value):
  with pytest.raises(ValueError, match=key):
    diffusers_config.process({key: value})


def test_a_process_without_terminal_signal_goes_in_and_out():
  config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
  ours = diffusers_config.process(config)
  assert ours["schedule"]["zero_terminal"]
  theirs = diffusers_config.scheduler(ours["schedule"], "v", "fixed_small")
  assert theirs["rescale_betas_zero_snr"]
  assert diffusers_config.process(theirs) == ours


def test_a_process_that_diffusers_lacks_is_refused():
  schedule = {"name": "cosine", "T": 10}
  with pytest.raises(ValueError, match="variance='learned' is not one of"):
    diffusers_config.scheduler(schedule, "eps", "learned")
  with pytest.raises(ValueError, match="schedule.max_beta has no counterpart"):
    diffusers_config.scheduler(
      schedule | {"max_beta": 0.9}, "eps", "fixed_small"
    )
  with pytest.raises(ValueError, match=r"schedule.name='jsd' is not one of"):
    diffusers_config.scheduler(schedule | {"name": "jsd"}, "eps", "fixed_small")


def test_a_scaled_schedule_is_written_as_its_betas():
  config = diffusers_config.scheduler(
    {"name": "linear", "T": 4000}, "eps", "fixed_small"
  )
  np.testing.assert_allclose(
    [config["beta_start"], config["beta_end"]], [2.5e-5, 0.005], rtol=1e-15
  )


# A network of Ho et al.'s code with one block per level, by its scopes.
HO = {
  "temb/dense0/W": (32, 128), "temb/dense0/b": (128,),
  "temb/dense1/W": (128, 128), "temb/dense1/b": (128,),
  "conv_in/W": (3, 3, 3, 32), "conv_in/b": (32,),
  "down_0/downsample/conv/W": (3, 3, 32, 32), "down_0/downsample/conv/b": (32,),
  "up_1/upsample/conv/W": (3, 3, 64, 64), "up_1/upsample/conv/b": (64,),
  "norm_out/gamma": (32,), "norm_out/beta": (32,),
  "conv_out/W": (3, 3, 32, 3), "conv_out/b": (3,),
}  # fmt: skip
for path, n_in, n_out in (
  ("down_0/block_0", 32, 32),
  ("down_1/block_0", 32, 64),
  ("mid/block_1", 64, 64),
  ("mid/block_2", 64, 64),
  ("up_1/block_0", 128, 64),
  ("up_1/block_1", 96, 64),
  ("up_0/block_0", 96, 32),
  ("up_0/block_1", 64, 32),
):
  for norm, width in (("norm1", n_in), ("norm2", n_out)):
    HO |= {f"{path}/{norm}/{leaf}": (width,) for leaf in ("gamma", "beta")}
  HO |= {
    f"{path}/conv1/W": (3, 3, n_in, n_out),
    f"{path}/conv2/W": (3, 3, n_out, n_out),
    f"{path}/temb_proj/W": (128, n_out),
  }
  names = ["conv1", "conv2", "temb_proj"]
  if n_in != n_out:
    HO[f"{path}/nin_shortcut/W"] = (n_in, n_out)
    names.append("nin_shortcut")
  HO |= {f"{path}/{name}/b": (n_out,) for name in names}
for path in ("down_1/attn_0", "mid/attn_1", "up_1/attn_0", "up_1/attn_1"):
  HO |= {f"{path}/norm/{leaf}": (64,) for leaf in ("gamma", "beta")}
  for name in ("q", "k", "v", "proj_out"):
    HO |= {f"{path}/{name}/W": (64, 64), f"{path}/{name}/b": (64,)}


def ho():
  """The network of HO, and that of the stored diffusers folder."""
  return UNet(
    channels=32, multipliers=(1, 2), num_blocks=1, attention_levels=(1,),
    groups=32,
  )  # fmt: skip


def test_tensorflow_names_out_and_back():
  variables = {
    name: np.random.default_rng(k).standard_normal(shape, np.float32)
    for k, (name, shape) in enumerate(HO.items())
  }
  params = from_tensorflow(variables, ho())
  back = to_tensorflow(params, ho())
  assert back.keys() == variables.keys()
  for name, variable in variables.items():
    np.testing.assert_array_equal(back[name], variable)
  # Kernels are laid out alike: what multiplies an input from the right.
  np.testing.assert_array_equal(
    params["time1"]["kernel"], variables["temb/dense0/W"]
  )
  np.testing.assert_array_equal(
    params["Conv_0"]["kernel"], variables["conv_in/W"]
  )
  query = params["Attention_0"]["qkv"]["kernel"][:, :64]
  np.testing.assert_array_equal(query, variables["down_1/attn_0/q/W"])


def test_a_checkpoint_of_tensorflow_gives_its_averages():
  raw, average = np.zeros(HO["conv_in/W"]), np.ones(HO["conv_in/W"])
  checkpoint = {
    "global_step": np.zeros(()),
    "beta1_power": np.zeros(()),
    "model/conv_in/W": raw,
    "model/conv_in/W/Adam": raw,
    "model/conv_in/W/Adam_1": raw,
  }
  network_variables = tensorflow.network_variables
  assert network_variables(checkpoint)["conv_in/W"] is raw
  checkpoint["model/conv_in/W/ExponentialMovingAverage"] = average
  assert network_variables(checkpoint).keys() == {"conv_in/W"}
  assert network_variables(checkpoint)["conv_in/W"] is average
  with pytest.raises(ValueError, match="no network below 'net/'; it has beta1"):
    network_variables(checkpoint, "net")


@pytest.mark.parametrize("name", ["improved-cifar10", "ddpm-cifar10"])
def test_only_networks_of_ho_et_al_have_tensorflow_names(name):
  net = PRESETS[name].net.clone(channels=32)
  if name == "ddpm-cifar10":
    assert to_tensorflow_names(net) > 300
  else:
    with pytest.raises(ValueError, match="scale_shift=True; in Ho et al.'s"):
      to_tensorflow_names(net)


def to_tensorflow_names(net):
  shapes = jax.eval_shape(
    lambda key: net.init(key, jnp.zeros((1, 32, 32, 3)), jnp.ones(1)),
    jax.random.key(0),
  )["params"]
  return len(
    to_tensorflow(jax.tree.map(lambda s: np.zeros(s.shape), shapes), net)
  )
