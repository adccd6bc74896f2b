import pytest

import diffusion_jax as dj
from diffusion_jax.models.presets import PRESETS, count_params
from experiments.configs import classifier


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_are_the_published_ones(name):
  assert count_params(PRESETS[name]) == PRESETS[name].params


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_sense(name):
  preset = PRESETS[name]
  options = dict(preset.schedule)
  schedule = getattr(dj.schedules, options.pop("name"))(**options)
  assert preset.variance in dj.process.VARIANCES
  assert preset.target in dj.process.TARGETS
  assert preset.sampling["steps"] <= schedule.T
  # Every published network attends at 16 x 16 at the least.
  sizes = {preset.size >> level for level in preset.net.attention_levels}
  assert 16 in sizes
  if preset.loss != "cross_entropy":
    learned = preset.variance.startswith("learned")
    assert (preset.net.out_channels == 6) == learned


@pytest.mark.parametrize(
  ("size", "batch_size", "num_steps", "lr", "weight_decay"),
  [
    (64, 1024, 300_000, 6e-4, 0.2),
    (128, 256, 300_000, 3e-4, 0.05),
    (256, 256, 500_000, 3e-4, 0.05),
    (512, 256, 500_000, 3e-4, 0.05),
  ],
)
def test_classifiers_are_trained_as_published(
  size, batch_size, num_steps, lr, weight_decay
):
  # Dhariwal and Nichol 2021, table 12; classifier_train.py for the crops.
  config = classifier.get_config(f"imagenet{size}")
  assert config.batch_size == batch_size
  assert config.num_steps == config.optim.decay_steps == num_steps
  assert (config.optim.lr, config.optim.weight_decay) == (lr, weight_decay)
  assert config.optim.decay == "linear"
  assert config.flip and config.data.random_crop
