"""Names in a configuration, and the method that each means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.runs import checks, processes, samplers
from experiments.configs import common, digits


def test_edm_is_assembled():
  config = digits.get_config("edm")
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  door = processes.door(config)
  assert door["target"] is dj.targets.edm(0.75)
  at = schedule.at(3.0)
  np.testing.assert_allclose([at.alpha, at.sigma], [1, 3], rtol=1e-6)
  assert door["clock"] is dj.edm.c_noise
  t = processes.draw(config)(jax.random.key(0), 1000, schedule.T)
  assert abs(jnp.log(t).mean() + 1.2) < 0.01
  assert abs(jnp.log(t).std() - 1.2) < 0.02
  pairs = samplers.walk(schedule, "edm_heun", None, 18)
  np.testing.assert_allclose(pairs[17], [0.002, 0], rtol=1e-4)
  config.sampling.churn.update({"S_churn": 40.0, "S_max": 50.0})
  step = samplers.sampler("edm_heun", num=18, churn=config.sampling.churn)
  assert step.keywords["gamma"] == 2**0.5 - 1
  assert step.keywords["S_max"] == 50


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"target": "mean"}, "target=mean is of whole steps, schedule.name='ve'"),
    ({"low_res": {"size": (4,), "noise": 9}}, "low_res.noise=9 is of whole"),
    ({"timesteps": "often"}, "timesteps 'often' is not one of uniform, "),
    ({"loss": {"name": "vlb"}}, "loss 'vlb' is of whole steps"),
    ({"schedule": {"name": "ve", "offset": 1}}, "schedule 've': "),
    (
      {"sampling": {"sampler": "edm_heun", "churn": {"S_churn": -1.0}}},
      "S_churn=-1.0, S_noise=1.0 must not be negative",
    ),
  ],
)
def test_what_real_time_has_not_is_refused(changes, message):
  config = common.make(**{"schedule": {"name": "ve"}, **changes})
  with pytest.raises(ValueError, match=message):
    processes.draw(config)
    processes.loss_at(config)
    checks.check(config, processes.schedule(config))


def test_steps_have_no_times_of_real_time():
  config = common.make(timesteps="log_normal")
  with pytest.raises(ValueError, match="'log_normal' is of real time"):
    processes.draw(config)


def test_a_shift_adds_noise():
  config = common.make(schedule={"name": "flow", "shift": 3.0})
  at = processes.schedule(config).at(0.5)
  np.testing.assert_allclose([at.alpha, at.sigma], [0.25, 0.75], rtol=1e-6)


@pytest.mark.parametrize(
  ("variant", "target", "space"),
  [
    ("v", dj.targets.v, None),
    ("flow", dj.targets.flow, None),
    ("jit-loss", dj.targets.x0, dj.targets.jit()),
  ],
)
def test_the_digits_have_flow_matching(variant, target, space):
  config = digits.get_config(variant)
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  assert processes.door(config)["target"] is target
  loss_at = processes.loss_at(config)
  assert getattr(loss_at, "keywords", {}).get("space") is space
  if variant != "v":
    pairs = samplers.walk(schedule, "flow_heun", None, 4)
    np.testing.assert_array_equal(pairs[:, 0], [1, 0.75, 0.5, 0.25])


def test_a_space_is_of_the_simple_loss():
  config = common.make(loss={"weight": "p2", "space": "x0"})
  with pytest.raises(
    ValueError, match="loss.space='x0' is of loss.name=simple"
  ):
    processes.loss_at(config)


def test_guidance_is_projected_where_an_eta_is_named():
  config = common.make()
  assert samplers.guide(config) is dj.guidance.classifier_free
  config.sampling.apg.update({"eta": 0.0, "radius": 2.5})
  guide = samplers.guide(config)
  assert guide.func is dj.guidance.projected
  assert guide.keywords == {"eta": 0.0, "radius": 2.5}
  config.sampling.apg.radius = -1.0
  with pytest.raises(ValueError, match="apg.radius=-1.0 must be above 0"):
    checks.check(config, processes.schedule(config))
