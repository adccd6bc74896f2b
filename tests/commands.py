"""Commands under test, run in this process to save their start."""

import json

import pytest

from diffusion_jax.runs import planning
from diffusion_jax.runs.options import SamplingOptions

# The smallest network that still is one.
TINY = (
  "--config=configs/digits.py:smoke",
  "--config.model.channels=8",
  "--config.model.multipliers=(1,)",
  "--config.model.attention_levels=()",
  "--config.preview.num=4",
  "--config.preview.steps=2",
  "--config.sampling.steps=4",
  "--config.every.log=2",
  "--config.every.preview=4",
  "--config.every.checkpoint=4",
)
# Without pictures on the way and at the end, for tests that look at none.
BLIND = (*TINY, "--config.preview.num=0")
UPSAMPLER = (*BLIND, "--config.low_res.size=(4,)", "--config.low_res.noise=50")
CLASSIFIER = (
  "--config=configs/classifier.py:smoke",
  "--config.held_out=50",
  "--config.model.channels=8",
  "--config.model.multipliers=(1,)",
  "--config.model.attention_levels=()",
  "--config.every.log=2",
  "--config.every.checkpoint=4",
)


def command(module, *flags):
  module.main([module.__name__, *map(str, flags)])


def assert_one_error(stop, capsys, message):
  """One line on stderr that matches, status 2."""
  assert stop.value.code == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1, lines
  assert lines[0].startswith("error: ")
  with pytest.raises(ValueError, match=message):
    raise ValueError(lines[0])


def refused(capsys, module, *flags) -> str:
  """The one line with which a command refuses its flags."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    command(module, *flags)
  assert stop.value.code not in (0, None)
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), lines
  assert len(lines[0]) > len("error: ") + 10
  return lines[0]


def params_of(workdir):
  """The raw parameters of a run's newest checkpoint."""
  return planning.plan(workdir, SamplingOptions(ema="raw")).params


def rows(path):
  """The rows of a .jsonl."""
  return [json.loads(line) for line in path.read_text().splitlines()]
