"""Names in a configuration, and the method that each means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.models.edm2 import WEIGHT
from diffusion_jax.runs import checks, networks, processes, samplers
from diffusion_jax.runs.generate import Generator
from diffusion_jax.runs.options import SamplingOptions
from diffusion_jax.runs.training import objectives
from experiments.configs import common, digits, edm, edm2, flow


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
    ({"target": "mean"}, "target=mean needs discrete time, schedule.name='ve'"),
    ({"low_res": {"size": (4,), "noise": 9}}, "low_res.noise=9 needs discrete"),
    ({"timesteps": "often"}, "timesteps 'often' is not one of uniform, "),
    ({"loss": {"name": "vlb"}}, "loss 'vlb' needs discrete time"),
    ({"loss": {"weight": "bound"}}, "loss.weight=bound needs discrete time"),
    ({"loss": {"space": "mean"}}, "loss.space=mean needs discrete time"),
    ({"schedule": {"name": "ve", "offset": 1}}, "schedule 've': "),
    (
      {"sampling": {"sampler": "edm_heun", "churn": {"S_churn": -1.0}}},
      "S_churn=-1.0, S_noise=1.0 must not be negative",
    ),
  ],
)
def test_what_continuous_time_has_not_is_refused(changes, message):
  config = common.make(**{"schedule": {"name": "ve"}, **changes})
  with pytest.raises(ValueError, match=message):
    processes.draw(config)
    processes.loss_at(config)
    checks.check(config, processes.schedule(config))


def test_discrete_time_has_no_times_of_continuous_time():
  config = common.make(timesteps="log_normal")
  with pytest.raises(ValueError, match="'log_normal' needs continuous time"):
    processes.draw(config)


@pytest.mark.parametrize("part", ["preview", "sampling"])
def test_only_a_mean_flow_is_drawn_by_spans(part):
  config = digits.get_config("meanflow")
  checks.check(config, processes.schedule(config))
  config = digits.get_config("flow")
  config[part].sampler = "meanflow"
  with pytest.raises(ValueError, match=f"{part}.sampler: meanflow needs a net"):
    checks.check(config, processes.schedule(config))


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


class Net:
  """Draws towards its class."""

  def apply(self, _, x_t, t, cond):
    return 0.1 * x_t + dj.process.per_example(0.1 * cond["y"], x_t)


def drawn(batch=4, steps=4, **apg):
  config = common.make(schedule={"name": "cosine"})
  config.model.num_classes = 3
  config.sampling.apg.update(apg)
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  pairs = samplers.walk(schedule, "ddim", None, steps)
  generator = Generator(
    config, Net(), (2, 2, 1),
    SamplingOptions(sampler="ddim", batch=batch, guidance=2.5), pairs,
  )  # fmt: skip
  return generator({}, jax.random.key(0), 4), config, schedule, pairs


@pytest.mark.parametrize("apg", [
  {}, {"eta": 0.0, "radius": 2.5},
  {"eta": 0.3, "radius": 2.5, "momentum": -0.5},
])  # fmt: skip
def test_guidance_is_projected_where_an_eta_is_named(apg):
  got, config, schedule, pairs = drawn(**apg)
  door = processes.predictor(config, schedule, Net(), {})
  y = {"y": jnp.array([0, 1, 2, 0])}
  null = dj.conditions.without_class(3)
  step, clip = dj.ddim_step, lambda predict: dj.clipped(predict, schedule)
  strong, weak = dj.given(door, y), dj.given(door, null(y))
  if "momentum" in apg:
    step, predict = dj.apg.solver(step, weak, 2.5, after=clip, **apg), strong
  else:
    guide = dj.guidance.projected if apg else dj.guidance.classifier_free
    predict = dj.given(clip(guide(door, schedule, null, 2.5, **apg)), y)
  want, _ = dj.sample(
    step, predict, schedule, got.shape, jax.random.key(0), pairs=pairs
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_momentum_is_handed_on_from_piece_to_piece_in_any_batch():
  apg = {"eta": 0.0, "momentum": -0.75}
  want, *_ = drawn(**apg)
  np.testing.assert_allclose(drawn(2, **apg)[0], want, rtol=1e-6, atol=1e-6)
  without, *_ = drawn(eta=0.0)
  assert np.abs(want - without).max() > 1e-3


@pytest.mark.parametrize(("apg", "message"), [
  ({"eta": 0.0, "radius": -1.0}, "apg.radius=-1.0 must be above 0"),
  ({"eta": 0.0, "momentum": 1.0}, "apg.momentum=1.0 must be above -1"),
  ({"momentum": -0.5}, "apg.momentum is of projected guidance: set sampl"),
])  # fmt: skip
def test_what_apg_is_not_is_refused(apg, message):
  with pytest.raises(ValueError, match=message):
    drawn(**apg)


@pytest.mark.parametrize(
  ("variant", "pictures", "calls"), [("", 51.2e6, 99), ("skewed", 90e6, 49)]
)
def test_flow_matching_is_trained_as_published(variant, pictures, calls):
  config = flow.get_config(variant)
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  assert config.num_steps * config.batch_size == pytest.approx(
    pictures, rel=1e-4
  )
  pairs = samplers.walk(
    schedule, config.sampling.sampler, config.sampling.get("spacing"),
    config.sampling.steps,
  )  # fmt: skip
  assert 2 * len(pairs) - 1 == calls
  t = processes.draw(config)(jax.random.key(0), 4000, 1.0)
  if variant:  # EDM's noise levels: ln(t / (1 - t)) is normal
    logit = jnp.log(t / (1 - t))
    assert abs(logit.mean() + 1.2) < 0.1 and abs(logit.std() - 1.2) < 0.1


def objective(config):
  apply = lambda params, x_t, t, cond, key: params["w"] * x_t
  noise = processes.schedule(config)
  conditions = networks.conditions(config, noise, (8, 8, 1))
  return objectives.objective(config, noise, None, apply, conditions)


def test_augmentation_needs_a_network_that_is_given_its_labels():
  config = edm.get_config("cifar10-vp")
  assert (config.augment, config.model.augment_labels) == (0.12, 9)
  assert not config.flip
  batch = {"image": jnp.ones((8, 8, 8, 1)), "label": jnp.zeros(8, int)}
  state = dj.state.TrainState(3, {}, {}, None)
  drawn = objective(config).draw(jax.random.key(0), state, batch)
  assert drawn.examples.cond["augment"].shape == (8, 9)
  config.model.augment_labels = 0
  with pytest.raises(ValueError, match="augment=0.12 needs a network that"):
    objective(config)


def test_uncertainty_is_learnt_beside_the_network():
  config = digits.get_config("smoke")
  config.loss.uncertainty = True
  net = networks.model(config, (8, 8, 1), 10)
  made = jax.eval_shape(
    lambda key: networks.init(
      config, net, (8, 8, 1), networks.optimizer(config), key
    ),
    jax.random.key(0),
  )
  assert made.params["uncertainty"]["linear"][WEIGHT].shape == (128, 1)
  examples = dj.objectives.Noised(
    jnp.ones((2, 8, 8, 1)), None, jnp.array([1, 900]), jnp.ones((2, 8, 8, 1))
  )
  params = {"w": 0.0, "uncertainty": jax.tree.map(
    lambda x: jnp.ones(x.shape), made.params["uncertainty"]
  )}  # fmt: skip
  with_u = objective(config).loss(params, examples, jax.random.key(0))
  config.loss.uncertainty = False
  plain = objective(config).loss(params, examples, jax.random.key(0))
  clock = dj.edm.c_noise(processes.schedule(config), examples.t)
  u = processes.UNCERTAINTY.apply({"params": params["uncertainty"]}, clock)
  np.testing.assert_allclose(with_u, dj.losses.uncertain(plain, u), rtol=1e-5)


def test_edm2_is_trained_as_published():
  config = edm2.get_config("m")
  config.model.num_classes = 1000
  checks.check(config, processes.schedule(config))
  net = networks.model(config, (64, 64, 3), 1000)
  assert isinstance(net, dj.models.EDM2)
  assert (net.channels, net.dropout, net.num_classes) == (256, 0.1, 1000)
  assert config.num_steps * config.batch_size == 2**30
  rate = dj.optimizers.rate(
    config.optim.lr, warmup_steps=config.optim.warmup_steps,
    decay=config.optim.decay, decay_steps=config.optim.decay_steps,
  )  # fmt: skip
  assert rate(35_000) == pytest.approx(0.009)
  assert rate(4 * 35_000) == pytest.approx(0.0045)
  assert networks.averages(config) == ["std0.05", "std0.1"]
  with pytest.raises(ValueError, match="must be multiples of 8"):
    networks.model(config, (60, 64, 3), 1000)


def test_edms_sampler_is_refused_where_no_signal_is_left():
  flow = dj.continuous.flow()
  with pytest.raises(
    ValueError, match="by the signal, which is 0 at t=1.0, wh"
  ):
    samplers.walk(flow, "edm_heun", "even", 4)
  # By itself it starts where a little is left.
  assert flow.at(samplers.walk(flow, "edm_heun", None, 4)[0, 0]).alpha > 0
