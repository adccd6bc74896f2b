"""What every network refuses, and takes, alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import refused

from diffusion_jax.models import EDM2, Classifier, DiT, JiT, UNet
from experiments import train

UNETS = {
  "channels": 8, "multipliers": (1, 2), "num_blocks": 1,
  "attention_levels": (1,),
}  # fmt: skip
TRANSFORMERS = {"patch": 2, "width": 8, "depth": 2, "heads": 1}
SMALL = {
  "unet": (UNet, UNETS),
  "block": (UNet, UNETS | {"resample": "block", "head_channels": 8}),
  "song": (UNet, UNETS | {"embedding": "fourier", "pyramid": True,
                          "resample": "block", "taps": (1, 3, 3, 1)}),
  "edm2": (EDM2, UNETS | {"head_channels": 8}),
  "dit": (DiT, TRANSFORMERS),
  "jit": (JiT, TRANSFORMERS | {"class_tokens": 2, "class_start": 1}),
  "classifier": (Classifier, UNETS | {"num_labels": 3}),
}  # fmt: skip
# Those that take every part of a condition.
FULL = ("unet", "dit", "jit")
PARTS = {
  "y": np.arange(3) % 2,
  "vector": np.zeros((3, 4), np.float32),
  "planes": np.zeros((3, 8, 8, 1), np.float32),
  "low_res": np.zeros((3, 4, 4, 1), np.float32),
  "low_res_t": np.zeros(3, np.int32),
  "augment": np.zeros((3, 9), np.float32),
  "s": np.zeros(3, np.float32),
}
NEEDS = {
  "y": {"num_classes": 3},
  "vector": {"vector": 4},
  "low_res_t": {"noisy_low_res": True},
  "augment": {"augment_labels": 9},
  "s": {"spans": True},
}


def make(name, **settings):
  network, small = SMALL[name]
  return network(**small | settings)


def shape(net, cond=None, count=3):
  """The shape of the output, and whatever is wrong, without computing it."""
  x, t = jnp.zeros((count, 8, 8, 1)), jnp.ones(count)
  run = lambda key: net.init_with_output(key, x, t, cond)[0]
  return jax.eval_shape(run, jax.random.key(0)).shape


OF_UNETS = [
  {"channels": 0}, {"channels": -8}, {"multipliers": ()},
  {"multipliers": (0, 1)}, {"multipliers": (-1, 1)}, {"num_blocks": 0},
  {"num_blocks": -1}, {"attention_levels": (2,)}, {"attention_levels": (-1,)},
  {"head_channels": 0},
]  # fmt: skip
OF_ALL = [
  {"dropout": 2.0}, {"dropout": 1.0}, {"dropout": -0.1}, {"num_classes": 0},
  {"num_classes": -1}, {"out_channels": 0}, {"dtype": "int32"},
  {"attention_kernel": "flash"},
]  # fmt: skip
WRONG = [
  *((name, one) for name in SMALL for one in OF_ALL),
  *((n, one) for n in ("unet", "edm2", "classifier") for one in OF_UNETS),
  *((n, {"augment_labels": -1}) for n in FULL),
  *((n, {"vector": -1}) for n in FULL),
  ("classifier", {"num_labels": 0}),
  ("classifier", {"num_labels": -1}),
  ("dit", {"mlp_ratio": -1.0}),
  ("jit", {"mlp_ratio": 0.125}),
]


@pytest.mark.parametrize(("name", "setting"), WRONG)
def test_an_impossible_setting_is_named(name, setting):
  ((key, _),) = setting.items()
  with pytest.raises(ValueError, match=f"{key}.*(must be|is not|levels are)"):
    shape(make(name, **setting))


@pytest.mark.parametrize("name", SMALL)
def test_no_examples_have_no_outputs(name):
  # Nothing is compiled for shapes alone, and they are where it failed.
  outputs = shape(make(name))[1:]
  assert shape(make(name), count=0) == (0, *outputs)


def of_another_length(part, count):
  return np.resize(PARTS[part], (count, *PARTS[part].shape[1:]))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", FULL)
def test_a_condition_is_of_as_many_examples_as_there_are(name, part, count):
  net = make(name, **NEEDS.get(part, {}))
  cond = {part: PARTS[part]}
  if part == "low_res_t":
    cond["low_res"] = PARTS["low_res"]
  assert shape(net, cond) == (3, 8, 8, 1)
  cond[part] = of_another_length(part, count)
  message = rf"cond\['{part}'\] has {count} examples, the batch has 3"
  with pytest.raises(ValueError, match=message):
    shape(net, cond)


@pytest.mark.parametrize("name", FULL)
def test_planes_are_of_the_images_size(name):
  cond = {"planes": np.zeros((3, 4, 8, 1), np.float32)}
  with pytest.raises(ValueError, match="planes'. are of 4 x 8, .* of 8 x 8"):
    shape(make(name), cond)


def test_edm2_counts_its_classes_too():
  net = make("edm2", num_classes=3)
  with pytest.raises(ValueError, match="has 1 examples, the batch has 3"):
    shape(net, {"y": np.zeros(1, int)})


def test_a_classifier_takes_no_condition():
  with pytest.raises(ValueError, match="'y' is not one of .*it takes none"):
    shape(make("classifier"), {"y": np.zeros(3, int)})


def test_a_command_checks_the_settings_of_any_network(capsys):
  edm2 = ("--config=configs/digits.py:edm", "--config.model.name=edm2")
  wrong = "--config.model.attention_levels=(5,)"
  line = refused(capsys, train, *edm2, wrong, "--dry_run")
  assert "attention_levels has 5; the levels are 0..3" in line
