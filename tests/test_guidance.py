"""Guidance against closed forms: Gaussians that differ in their mean.

For two Gaussians of equal variance the guided score is the exact score of a
third, whose mean lies scale times as far: there guidance samples the tilted
distribution p_weak (p_strong / p_weak)^scale exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from oracles import Mixture

from diffusion_jax import (
  apg,
  composition,
  conditions,
  continuous,
  guidance,
  prediction,
  process,
  samplers,
  schedules,
  solvers,
  timesteps,
)
from diffusion_jax.targets import TARGETS

STRONG = Mixture(means=(0.4,), weights=(1.0,), std=0.3)
WEAK = Mixture(means=(0.1,), weights=(1.0,), std=0.3)
TILTED = Mixture(means=(0.1 + 2.5 * 0.3,), weights=(1.0,), std=0.3)
PEAKS = Mixture(means=(-0.5, 0.5), weights=(0.5, 0.5), std=0.2)
SHAPE = (4096, 2, 2, 1)


def batch(n=8, seed=0):
  return (
    jax.random.normal(jax.random.key(seed), (n, 4, 4, 2)),
    1 + jnp.arange(n) * 100,
  )


@pytest.mark.parametrize("target", TARGETS)
def test_guided_gaussians_are_the_tilted_gaussian(target):
  schedule, target = schedules.cosine(1000), TARGETS[target]
  x_t, t = batch()
  guided = guidance.autoguidance(
    STRONG.predictor(schedule, target),
    WEAK.predictor(schedule, target),
    schedule,
    2.5,
  )
  np.testing.assert_allclose(
    guided(x_t, t).output,
    TILTED.predictor(schedule, target)(x_t, t).output,
    rtol=2e-4,
    atol=2e-4,
  )


def test_samples_follow_the_tilted_distribution():
  schedule = schedules.cosine(1000)
  guided = guidance.autoguidance(
    STRONG.predictor(schedule), WEAK.predictor(schedule), schedule, 2.5
  )
  x, _ = samplers.sample(
    samplers.ancestral_step, guided, schedule, SHAPE, jax.random.key(0),
    pairs=timesteps.spaced(1000, 200),
  )  # fmt: skip
  n = x.size
  assert abs(float(x.mean()) - TILTED.mean) < 5 * 0.3 / np.sqrt(n)
  # 200 steps cost the variance about a percent.
  assert abs(float(x.var()) / 0.09 - 1) < 5 * np.sqrt(2 / n) + 0.02


SCHEDULE = schedules.cosine(1000)


def conditional(x_t, t, cond):
  """Class 0 is STRONG, class 1 (no class) is WEAK; two channels of variance."""
  y = process.per_example(cond["y"], x_t)
  eps = jnp.where(
    y == 0,
    STRONG.predictor(SCHEDULE)(x_t, t).output,
    WEAK.predictor(SCHEDULE)(x_t, t).output,
  )
  return jnp.concatenate([eps, 0 * eps + y], axis=-1)


def classifier_free(scale, apply=conditional, **options):
  """Guided towards class 0."""
  predict = prediction.predictor(apply, SCHEDULE, variance="learned")
  guided = guidance.classifier_free(
    predict, SCHEDULE, conditions.without_class(1), scale, **options
  )
  return prediction.given(guided, {"y": jnp.zeros(8, jnp.int32)})


def test_classifier_free_is_one_call_and_keeps_the_classs_variance():
  x_t, t = batch()
  calls = []

  def counted(x, t, cond):
    calls.append(x.shape[0])
    return conditional(x, t, cond)

  p = classifier_free(2.5, counted)(x_t, t)
  assert calls == [16]
  want = TILTED.predictor(SCHEDULE)(x_t, t).output
  np.testing.assert_allclose(p.output, want, rtol=2e-4, atol=2e-4)
  np.testing.assert_array_equal(p.raw, 0)  # class 0's, not guided


@pytest.mark.parametrize(("scale", "label"), [(1.0, 0), (0.0, 1)])
def test_scale_one_is_the_class_and_zero_no_class(scale, label):
  x_t, t = batch()
  p = classifier_free(scale)(x_t, t)
  want = conditional(x_t, t, {"y": jnp.full(8, label)})
  np.testing.assert_allclose(p.output, want[..., :2], atol=1e-5)


def test_the_interval_guides_inside_and_nowhere_else():
  x_t, t = batch()  # t = 1, 101, ..., 701
  out = classifier_free(3.0, interval=(101, 501))(x_t, t).output
  full, off = (classifier_free(scale)(x_t, t).output for scale in (3.0, 1.0))
  inside = np.array([False, True, True, True, True, True, False, False])
  np.testing.assert_array_equal(out[inside], full[inside])
  np.testing.assert_array_equal(out[~inside], off[~inside])


def test_rescaled_guidance_has_the_unguided_spread():
  x_t, t = batch()
  output = lambda *args, **options: (
    classifier_free(*args, **options)(x_t, t).output
  )
  spread = lambda x: np.std(x, axis=(1, 2, 3))
  np.testing.assert_allclose(
    spread(output(4.0, rescale=1.0)), spread(output(1.0)), rtol=1e-4
  )
  np.testing.assert_array_equal(output(4.0, rescale=0.0), output(4.0))


@pytest.mark.parametrize(
  "options",
  [
    {}, {"rescale": 0.0}, {"rescale": 0.7}, {"eta": 0.3},
    {"eta": 0.3, "radius": 2.0},
  ],
)  # fmt: skip
def test_guidance_has_a_slope_where_an_output_is_constant(options):
  schedule, (x_t, t) = schedules.cosine(1000), batch()
  predict = prediction.predictor(
    lambda x, t, scale: process.per_example(scale, x) * x, schedule,
    target=TARGETS["x0"],
  )  # fmt: skip
  guide = guidance.projected if "eta" in options else guidance.classifier_free
  guided = guide(predict, schedule, lambda scale: 0.5 * scale, 3.0, **options)

  def end(scale):
    cond = jnp.full(8, scale)
    return guided(x_t.at[0].set(0.3), t, cond).x0_hat.sum()

  for scale in (0.0, 0.1):
    assert jnp.isfinite(jax.grad(end)(scale))


def test_the_momentum_of_apg_has_a_slope():
  schedule, (x_t, _) = schedules.cosine(1000), batch()

  def end(scale):
    predict = prediction.predictor(lambda x, t: scale * x, schedule)
    weak = prediction.predictor(lambda x, t: 0.5 * scale * x, schedule)
    solver = apg.solver(samplers.ddim_step, weak, 2.5)
    return samplers.sample(
      solver, predict, schedule, x_t.shape, jax.random.key(0),
      pairs=timesteps.spaced(1000, 3), x_T=x_t,
    )[0].sum()  # fmt: skip

  assert jnp.isfinite(jax.grad(end)(0.1))


def test_another_scale_does_not_trace_again():
  x_t, t = batch()
  traces = []

  @jax.jit
  def run(scale, rescale):
    traces.append(1)
    return classifier_free(scale, rescale=rescale)(x_t, t).x0_hat

  for scale in (1.0, 2.0, 7.5):
    run(scale, 0.1 * scale)
  assert len(traces) == 1


def peaks_classifier(schedule):
  """Exact logits of the peak that a whole x_0 = +-0.5 + 0.2 n came from."""

  def classify(x_t, t):
    alpha, sigma = process.rates(schedule, t, x_t)
    var = alpha**2 * PEAKS.std**2 + sigma**2
    logits = [
      -(((x_t - alpha * m) ** 2) / (2 * var)).sum(axis=(1, 2, 3))
      for m in PEAKS.means
    ]
    return jnp.stack(logits, axis=1)

  return classify


@pytest.mark.parametrize("form", ["mean", "score"])
def test_classifier_guidance_at_scale_one_is_bayes_rule(form):
  # One pixel, so that the mixture's peak is the image's class.
  schedule = schedules.cosine(1000)
  shape = (8192, 1, 1, 1)
  y = jnp.ones(shape[0], jnp.int32)
  gradient = guidance.log_prob_gradient(peaks_classifier(schedule), y)
  predict = PEAKS.predictor(schedule)
  if form == "mean":
    step = functools.partial(
      guidance.classifier_step, gradient=gradient, scale=1.0
    )
  else:
    predict = guidance.classifier(predict, schedule, gradient, 1.0)
    step = samplers.ddim_step
  x, _ = samplers.sample(
    step, predict, schedule, shape, jax.random.key(1),
    pairs=timesteps.spaced(1000, 250),
  )  # fmt: skip
  # Moving the mean by var times the gradient is first order in the step.
  assert abs(float(x.mean()) - 0.5) < 5 * 0.2 / np.sqrt(shape[0]) + 5e-3
  assert abs(float(x.std()) / 0.2 - 1) < 5 / np.sqrt(2 * shape[0]) + 0.03


def test_a_gradient_does_not_depend_on_the_batch():
  schedule = schedules.cosine(1000)
  x = jax.random.normal(jax.random.key(0), (6, 1, 1, 1))
  t, y = jnp.full(6, 300), jnp.array([0, 1, 0, 1, 0, 1])
  classify = peaks_classifier(schedule)
  whole = guidance.log_prob_gradient(classify, y)(x, t)
  one = guidance.log_prob_gradient(classify, y[2:3])(x[2:3], t[2:3])
  np.testing.assert_allclose(whole[2:3], one, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("form", ["ancestral", "ddim"])
def test_one_guided_step_is_the_published_codes(name, form):
  numbers = reference.load("process")
  with jax.enable_x64(True):
    schedule = getattr(schedules, name)(1000)
    x_t = jnp.asarray(numbers[f"{name}_x_t"])
    noise = jnp.asarray(numbers["noise"])
    t = jnp.asarray(numbers[f"{name}_t"]) + 1
    predict = reference.predict(
      numbers["coefs"], schedule, variance="learned_range"
    )
    predict = prediction.clipped(predict, schedule)
    gradient = lambda x, t: 0.3 * x - 0.1 * jnp.cos(x)
    if form == "ancestral":
      out, _ = guidance.classifier_step(
        predict, schedule, x_t, t, t - 1, noise, gradient=gradient
      )
    else:
      guided = guidance.classifier(predict, schedule, gradient, 1.0)
      out, _ = samplers.ddim_step(guided, schedule, x_t, t, t - 1, noise)
  np.testing.assert_allclose(
    out, numbers[f"{name}_guided_{form}"], rtol=1e-6, atol=1e-9
  )


def test_the_last_move_of_a_walk_is_pushed_by_its_own_variance():
  schedule = schedules.cosine(1000)
  x = jnp.full((1, 1, 1, 1), 0.5)
  last = lambda scale: guidance.classifier_step(
    PEAKS.predictor(schedule), schedule, x, 40, 0, x, scale=scale, above=80,
    gradient=lambda x, t: jnp.ones_like(x),
  )[0]  # fmt: skip
  push = float((last(1.0) - last(0.0)).squeeze())
  want = process.posterior_var(schedule, 80, 40)
  np.testing.assert_allclose(push, want, rtol=1e-4)


def test_hidden_labels_are_as_many_as_asked_and_nothing_else_changes():
  y = jnp.arange(20_000) % 7
  hidden = conditions.drop_labels(jax.random.key(0), y, 0.15, no_class=7)
  gone = np.asarray(hidden == 7)
  assert abs(gone.mean() - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 20_000)
  np.testing.assert_array_equal(hidden[~gone], y[~gone])
  none = conditions.drop_labels(jax.random.key(0), y, 0.0, no_class=7)
  np.testing.assert_array_equal(none, y)
  with pytest.raises(ValueError, match=r"rate=15 must be in \[0, 1\]"):
    conditions.drop_labels(jax.random.key(0), y, 15, no_class=7)


def test_an_empty_interval_is_refused():
  schedule = schedules.cosine(10)
  predict = PEAKS.predictor(schedule)
  with pytest.raises(ValueError, match="low <= high"):
    guidance.classifier_free(predict, schedule, lambda c: c, 2, interval=(5, 1))
  with pytest.raises(ValueError, match="low <= high"):
    guidance.autoguidance(predict, predict, schedule, 2, interval=(5, 1))
  with pytest.raises(ValueError, match=r"=\(1, 2, 3\) must be \(low, high\)"):
    guidance.autoguidance(predict, predict, schedule, 2, interval=(1, 2, 3))


def test_guidance_without_a_condition_is_refused():
  schedule = schedules.cosine(10)
  guided = guidance.classifier_free(
    PEAKS.predictor(schedule), schedule, conditions.without_class(3), 2.0
  )
  composed = composition.composed(
    PEAKS.predictor(schedule), schedule,
    conditions.Conditions(schedule, num_classes=3).without, {"class": 2.0},
  )  # fmt: skip
  for guide in (guided, composed):
    with pytest.raises(ValueError, match="without a condition; bind one: give"):
      guide(jnp.zeros((1, 2)), 5)


PAPERS = {4: {"eta": 0.0, "radius": 2.5}, 6: {
  "eta": 0.5, "radius": 2.5, "momentum": -0.75,
}}  # fmt: skip
DIFFUSERS = {
  0: (7.5, {"eta": 1.0, "radius": 15.0}),
  1: (7.5, {"eta": 0.0, "radius": 15.0}),
  2: (4.0, {"eta": 0.3, "radius": 2.5}),
  3: (4.0, {"eta": 0.0}),
  5: (5.0, {"eta": 0.0, "radius": 5.0, "momentum": -0.5}),
}


@pytest.mark.parametrize(
  ("number", "scale", "rescale"),
  [(0, 7.5, 0.0), (1, 7.5, 0.0), (2, 7.5, 0.7), (3, 3.0, 1.0)],
)
def test_classifier_free_guidance_is_the_published_one(number, scale, rescale):
  numbers, schedule = reference.load("guidance"), schedules.cosine(1000)
  with jax.enable_x64(True):
    strong, weak = (
      prediction.predictor(lambda *_, x=x: jnp.asarray(x), schedule)
      for x in (numbers["cond"][0], numbers["uncond"][0])
    )
    guided = guidance.autoguidance(
      strong, weak, schedule, scale, rescale=rescale
    )
    got = guided(jnp.zeros_like(numbers["cond"][0]), 500).output
  want = numbers[f"cfg_{number}"]
  np.testing.assert_allclose(got, want, atol=1e-10 * abs(want).max())


def test_dynamic_thresholds_are_the_published_ones():
  numbers, schedule = reference.load("guidance"), schedules.cosine(1000)
  with jax.enable_x64(True):
    x = jnp.asarray(numbers["threshold_x"])
    plain = prediction.predictor(lambda *_: x, schedule, target=TARGETS["x0"])
    predict = prediction.thresholded(plain, schedule, quantile=0.9)
    got = predict(0 * x, 500).x0_hat
  np.testing.assert_allclose(got, numbers["threshold_2"], atol=1e-10)


def calls(scale, options):
  """Four calls, the momentum carried from one to the next."""
  numbers, carried = reference.load("guidance"), 0.0
  for strong, weak in zip(numbers["cond"], numbers["uncond"], strict=True):
    strong, weak = jnp.asarray(strong), jnp.asarray(weak)
    x0_hat, carried = guidance.project(
      strong, weak, scale, carried=carried, **options
    )
    yield x0_hat, strong, weak


@pytest.mark.parametrize(("number", "w"), [(4, 3.0), (6, 2.0)])
def test_apg_is_the_published_one(number, w):
  with jax.enable_x64(True):
    got = [x0_hat for x0_hat, *_ in calls(w + 1, PAPERS[number])]
  want = reference.load("guidance")[f"apg_{number}"]
  np.testing.assert_allclose(got, want, atol=1e-10 * abs(want).max())


@pytest.mark.parametrize("number", DIFFUSERS)
def test_apg_has_the_update_of_diffusers(number):
  # Its default adds w times the update to the weak prediction.
  w, options = DIFFUSERS[number]
  with jax.enable_x64(True):
    got = [
      weak + w * (x0_hat - strong)
      for x0_hat, strong, weak in calls(2.0, options)
    ]
  want = reference.load("guidance")[f"apg_{number}"]
  np.testing.assert_allclose(got, want, atol=1e-10 * abs(want).max())


def told(schedule):
  """A network that is told its mean."""

  def apply(x_t, t, mean):
    data = Mixture((0.0,), (1.0,), 0.3)
    alpha, _ = process.rates(schedule, t, x_t)
    shift = mean.reshape(-1, 1, 1, 1)
    return data.x0_given(schedule, x_t - alpha * shift, t) + shift

  return prediction.predictor(apply, schedule, target=TARGETS["x0"])


def test_a_radius_below_zero_is_refused():
  x = jnp.ones((1, 2, 2, 1))
  with pytest.raises(ValueError, match="radius=-1.0 must be at least 0"):
    guidance.project(x, 0 * x, 2.0, radius=-1.0)


def test_apg_without_projection_is_classifier_free_guidance():
  schedule = schedules.cosine(1000)
  (x_t, t), null = batch(), lambda mean: 0 * mean + 0.1
  predict, mean = told(schedule), jnp.linspace(-1, 1, 8)
  plain, projected = (
    guide(predict, schedule, null, 2.5)(x_t, t, mean).x0_hat
    for guide in (
      guidance.classifier_free,
      functools.partial(guidance.projected, eta=1.0),
    )
  )
  np.testing.assert_allclose(projected, plain, rtol=1e-5, atol=1e-5)
  off = guidance.projected(predict, schedule, null, 1.0)(x_t, t, mean)
  np.testing.assert_array_equal(off.x0_hat, predict(x_t, t, mean).x0_hat)


def test_momentum_is_carried_from_step_to_step():
  schedule, mean = schedules.cosine(1000), jnp.linspace(-1, 1, 8)
  predict, (x_T, _) = told(schedule), batch()
  strong, weak = (prediction.given(predict, m) for m in (mean, 0 * mean))
  options = {"eta": 0.3, "radius": 5.0, "momentum": -0.5}
  pairs = timesteps.spaced(1000, 4)
  for inner in (samplers.ddim_step, solvers.dpm(2)):
    got, _ = samplers.sample(
      apg.solver(inner, weak, 2.5, **options), strong, schedule, x_T.shape,
      jax.random.key(0), pairs=pairs, x_T=x_T,
    )  # fmt: skip
    solver, x, d = samplers.as_solver(inner), x_T, 0.0
    memory = solver.init(x, 1000)
    for t, s in pairs:
      x0_hat, d = guidance.project(
        strong(x, t).x0_hat, weak(x, t).x0_hat, 2.5, carried=d, **options
      )
      exact = lambda x, t, cond=None, x0_hat=x0_hat: prediction.read(
        schedule, x, process.times(t, x), x0_hat
      )
      x, _, memory = solver.step(exact, schedule, x, t, s, x, memory)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


def test_without_momentum_the_solver_is_projected_guidance():
  schedule, mean = schedules.cosine(1000), jnp.linspace(-1, 1, 8)
  predict, (x_T, _) = told(schedule), batch()
  null, pairs = lambda mean: 0 * mean, timesteps.spaced(1000, 4)
  one = guidance.projected(predict, schedule, null, 2.5, eta=0.3)
  for step in (samplers.ddim_step, solvers.heun_step):
    got, want = (
      samplers.sample(
        step, prediction.given(predict, mean), schedule, x_T.shape,
        jax.random.key(0), pairs=pairs, x_T=x_T,
      )[0]
      for step, predict in (
        (apg.solver(step, prediction.given(predict, 0 * mean), 2.5, eta=0.3,
                    momentum=0.0), predict),
        (step, one),
      )
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "guide", [guidance.classifier_free, guidance.projected]
)
def test_a_scale_may_be_a_function_of_time(guide):
  schedule = schedules.cosine(1000)
  (x_t, t), null = batch(), lambda mean: 0 * mean
  predict, mean = told(schedule), jnp.linspace(-1, 1, 8)
  at = lambda t: jnp.where(t > 300, 3.0, 1.0)
  got = guide(predict, schedule, null, at)(x_t, t, mean).x0_hat
  strong = guide(predict, schedule, null, 3.0)(x_t, t, mean).x0_hat
  off = predict(x_t, t, mean).x0_hat
  np.testing.assert_allclose(got[t > 300], strong[t > 300], rtol=1e-6)
  np.testing.assert_allclose(got[t <= 300], off[t <= 300], rtol=1e-5, atol=1e-6)


def test_each_example_may_have_a_scale_of_its_own():
  # As many examples as channels: a scale must not become one of each channel.
  schedule = schedules.cosine(10)
  x_t, t = jnp.ones((3, 2, 2, 3)), jnp.full(3, 4)
  predict = prediction.predictor(
    lambda x, t, cond: 0 * x + cond[:, None, None, None], schedule,
    target=TARGETS["x0"],
  )  # fmt: skip
  cond, scale = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
  none = lambda cond, *_: 0 * cond
  for guided in (
    guidance.classifier_free(predict, schedule, none, scale),
    guidance.projected(predict, schedule, none, scale, eta=1.0),
    composition.composed(predict, schedule, none, {"class": scale}),
  ):
    x0_hat = guided(x_t, t, cond).x0_hat
    np.testing.assert_allclose(x0_hat, x_t * scale[:, None, None, None])
  gradient = lambda x_t, t: jnp.ones_like(x_t)
  pushed = guidance.classifier(
    prediction.given(predict, cond), schedule, gradient, scale
  )(x_t, t)
  away = pushed.eps_hat - predict(x_t, t, cond).eps_hat
  want = -schedule.sigma[4] * scale
  np.testing.assert_allclose(away[:, 0, 0, 0], want, rtol=1e-5)
  np.testing.assert_allclose(away[0], away[0, :1, :1, :1] + 0 * away[0])


def test_a_classifier_guides_nothing_where_there_is_only_noise():
  # eps_hat does not determine x0_hat at alpha = 0, where a flow begins.
  schedule, x = continuous.flow(), jnp.linspace(-1, 1, 8).reshape(2, 2, 2, 1)
  predict = PEAKS.predictor(schedule, TARGETS["x0"])
  guided = guidance.classifier(predict, schedule, lambda x_t, t: x_t, 1.0)
  np.testing.assert_array_equal(guided(x, 1.0).x0_hat, predict(x, 1.0).x0_hat)
  np.testing.assert_allclose(
    guided(x, 0.5).eps_hat, predict(x, 0.5).eps_hat - 0.5 * x, atol=1e-5
  )
