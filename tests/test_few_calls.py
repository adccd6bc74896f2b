"""Runs of few network calls: from a configuration to samples."""

import json
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from commands import BLIND, command, refused

import diffusion_jax as dj
from diffusion_jax.runs import (
  checks,
  directory,
  networks,
  planning,
  processes,
  restoring,
  starting,
)
from diffusion_jax.runs.options import SamplingOptions
from diffusion_jax.runs.training import objectives
from experiments import train
from experiments.configs import common, digits

HALVED = (
  "--config.objective.name=distillation",
  "--config.objective.steps=2",
  "--config.sampling.sampler=ddim",
  "--config.sampling.spacing=trailing",
  "--config.sampling.steps=2",
)


def planned(workdir, **options):
  return planning.plan(workdir, SamplingOptions.of(num=1, **options))


def state_of(workdir):
  config, data = directory.load(workdir)
  shape = tuple(data["image_shape"])
  net = networks.model(config, shape, data["num_classes"])
  return restoring.restore(workdir, config, net, shape)


def test_a_student_goes_on_without_its_teachers_run(zoo, tmp_path, few_numbers):
  teacher = zoo.copy("few", tmp_path / "teacher")
  flags = (*BLIND, *HALVED, f"--config.init.run={teacher}")
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  for workdir, steps in ((whole, 8), (cut, 4)):
    command(
      train, *flags, f"--config.num_steps={steps}", f"--workdir={workdir}"
    )
  learnt = restoring.weights(state_of(teacher), planned(teacher).options.ema)
  shutil.rmtree(teacher)
  command(train, *flags, "--config.num_steps=8", f"--workdir={cut}")
  a, b = state_of(whole), state_of(cut)
  chex.assert_trees_all_equal(a, b)
  chex.assert_trees_all_equal(a.teacher, learnt)
  plan = planned(whole, steps=2)
  assert plan.options.sampler == "ddim"
  np.testing.assert_array_equal(plan.pairs, [[1000, 500], [500, 0]])
  assert planned(whole, sampler="unipc", steps=2).options.sampler == "unipc"


def test_a_run_starts_where_another_ended(zoo, tmp_path, few_numbers, capsys):
  other = zoo.original("few")
  workdir = tmp_path / "run"
  command(
    train, *BLIND, f"--config.init.run={other}", "--config.num_steps=1",
    f"--workdir={workdir}",
  )  # fmt: skip
  begun = restoring.weights(state_of(other), planned(other).options.ema)
  state = state_of(workdir)
  chex.assert_trees_all_equal(state.params, begun)
  assert state.teacher is None
  for flag, message in (
    ("--config.init.run=nowhere", "no run directory nowhere"),
    (f"--config.init.run={zoo.original('judge')}", "this run is a classifier"),
    ("--config.target=v", "has target=eps, this run v: they must be the same"),
    ("--config.schedule.name=linear", "they must be the same"),
    ("--config.data.size=(4,)", "has images of (8, 8, 1), this run of (4, 4"),
  ):
    line = refused(
      capsys, train, *BLIND, f"--config.init.run={other}", flag,
      f"--workdir={tmp_path}/new",
    )  # fmt: skip
    assert message in line


def test_a_teacher_of_other_units_is_refused(zoo, tmp_path, capsys):
  teacher = zoo.copy("few", tmp_path / "teacher")
  data = directory.read_json(teacher, "data")
  data["values"] = {"centre": 8.0, "scale": 8.0}
  (teacher / "data.json").write_text(json.dumps(data))
  line = refused(
    capsys, train, *BLIND, *HALVED, f"--config.init.run={teacher}",
    f"--workdir={tmp_path}/new",
  )  # fmt: skip
  assert "on values of uint8 0 to 16, the run on uint8 0 to 255" in line


def test_parameters_are_grafted_by_name():
  new = {"a": jnp.zeros(2), "span2": {"kernel": jnp.zeros((2, 2))}}
  grafted = starting.grafted(new, {"a": np.ones(2)})
  chex.assert_trees_all_equal(grafted, {**new, "a": jnp.ones(2)})
  with pytest.raises(ValueError, match="init.run: b is there and not here"):
    starting.grafted(new, {"b": np.ones(2)})
  with pytest.raises(ValueError, match=r"a/ is \(3,\) there and \(2,\) here"):
    starting.grafted(new, {"a": np.ones(3)})


@pytest.mark.parametrize("variant", ["consistency", "meanflow", "distilled"])
def test_the_variants_of_the_digits_are_assembled(variant):
  config = digits.get_config(variant)
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  if variant == "distilled":
    with pytest.raises(ValueError, match="name its run as .*config.init.run"):
      objectives.check(config)
    config.init.run = "runs/digits-v"
    config.objective.steps = 4
    assert config.sampling.steps == config.preview.steps == 4
    walk = objectives.teachers_walk(config, schedule)
    assert walk[:, 0].tolist() == [1000, 875, 750, 625, 500, 375, 250, 125]
  objectives.check(config)
  net = networks.model(config, (8, 8, 1), 10)
  assert net.spans == (variant == "meanflow")
  conditions = networks.conditions(config, schedule, (8, 8, 1))
  made = objectives.objective(config, schedule, net, None, conditions)
  assert isinstance(made, dj.objectives.Objective)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"objective": {"name": "adversarial"}}, "'adversarial' is not one of dif"),
    ({"objective": {"name": "consistency"}}, "needs continuous time"),
    (
      {"objective": {"name": "meanflow"}, "schedule": {"name": "flow"}},
      "meanflow predicts a velocity, not target=eps",
    ),
    (
      {
        "objective": {"name": "meanflow"},
        "model": {"attention_kernel": "cudnn"},
      },
      "no forward-mode derivative",
    ),
    (
      {
        "objective": {"name": "consistency"}, "schedule": {"name": "flow"},
        "variance": "learned",
      },
      "learns no variance: variance='learned'",
    ),
    (
      {"objective": {"name": "distillation"}, "timesteps": "importance"},
      "not by past losses: timesteps=importance",
    ),
    (
      {
        "objective": {"name": "consistency", "teacher": True},
        "schedule": {"name": "flow"},
      },
      "learns from a teacher: name its run",
    ),
  ],
)  # fmt: skip
def test_objectives_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    objectives.check(common.make(**changes))


@pytest.mark.parametrize(
  ("steps", "spacing", "message"),
  [
    (0, "trailing", "objective.steps=0 must be at least 1"),
    (4, "even", "sampling.spacing='even' has other times for 4 steps"),
  ],
)
def test_walks_that_are_not_halved_are_refused(steps, spacing, message):
  config = digits.get_config("distilled")
  config.objective.steps, config.sampling.spacing = steps, spacing
  with pytest.raises(ValueError, match=message):
    objectives.teachers_walk(config, processes.schedule(config))


def test_guidance_is_learnt_where_labels_are_hidden():
  config = digits.get_config("meanflow")
  config.objective.kappa = 0.5
  schedule = processes.schedule(config)
  conditions = networks.conditions(config, schedule, (8, 8, 1))
  with pytest.raises(ValueError, match="kappa=0.5 guide away from no class"):
    objectives.objective(config, schedule, None, None, conditions)
