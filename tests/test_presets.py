import pytest

import diffusion_jax as dj
from diffusion_jax.models.presets import PRESETS, count_params


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
