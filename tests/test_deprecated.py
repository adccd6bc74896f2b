"""Old names of 0.1: for one release they are the new ones, and say so."""

import importlib
import pkgutil
import runpy

import pytest

from experiments import moved

NAMES = {
  "process.TARGETS": "targets:TARGETS",
  "process.VARIANCES": "prediction:VARIANCES",
  "process.v_from_eps": "targets:v.of",
  "process.x0_from_eps": "targets:eps.to_x0",
  "process.x0_from_mean": "targets:mean.to_x0",
  "process.x0_from_v": "targets:v.to_x0",
  "guidance.drop_labels": "conditions:drop_labels",
  "training.Apply": "objectives:Apply",
  "training.DECAYS": "optimizers:DECAYS",
  "checkpoint.CHECKSUMS": "checksums:NAME",
}


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_is_the_new_one(old):
  module, _, name = old.rpartition(".")
  new = NAMES[old]
  says = f"{old} is now diffusion_jax.{new.replace(':', '.')};"
  with pytest.warns(DeprecationWarning, match=says.replace(".", r"\.")):
    value = getattr(importlib.import_module(f"diffusion_jax.{module}"), name)
  assert value == pkgutil.resolve_name(f"diffusion_jax.{new}")


def test_a_name_that_never_was_is_an_error():
  from diffusion_jax import process

  with pytest.raises(AttributeError, match=r"process' has no attribute 'nix'"):
    process.nix  # noqa: B018


@pytest.mark.parametrize("name", ["benchmark", "solvers"])
def test_a_command_runs_under_its_old_name(name):
  says = f"experiments.{name} is now experiments.tools.{name};"
  with pytest.warns(DeprecationWarning, match=says):
    ran = runpy.run_module(f"experiments.{name}", run_name="not main")
  assert callable(ran["main"])


def test_every_command_that_moved_is_where_it_is_said_to_be():
  for name in moved.MOVED:
    assert importlib.util.find_spec(f"experiments.tools.{name}") is not None
    assert importlib.util.find_spec(f"experiments.{name}x") is None
