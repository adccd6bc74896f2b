"""MeanFlow: the published numbers, and the exact average velocity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from oracles import PATHS, Mixture, flow_map

import diffusion_jax as dj
from diffusion_jax import continuous, meanflow, process, targets

FLOW = continuous.flow()
NONE = 5  # the label that is none
# Guidance and the exponent of mf_i; their offset is 0.01, of 2 it is 0.001.
CASES = {
  0: (None, 1.0, 0.01),
  1: ((1.0, 0.5, None), 1.0, 0.01),
  2: ((2.0, 0.0, None), 0.75, 1e-3),
  3: ((0.2, 0.92, (0.3, 0.8)), 1.0, 0.01),
}
DROPS = {0: 0.1, 1: 0.1, 2: 0.1, 3: 0.5}


@pytest.fixture(scope="module")
def numbers():
  return reference.load("meanflow")


def stand_in(numbers):
  """The published codes' network, whose condition has a label and s."""
  a, b, c, d = numbers["coefs"]

  def f(x, t, cond):
    t, y = (process.per_example(v, x) for v in (t, cond["y"]))
    h = t - process.per_example(cond["s"], x)
    return a * x + b * jnp.sin(2 * x + t + h / 2) + c * (t - h) + d * y / NONE

  return f


def near(got, want):
  np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


def objective(apply, **options):
  return meanflow.meanflow(
    lambda params, x_t, t, cond, key: apply(x_t, t, cond), FLOW, **options
  )


# --------------------------------------------------------- published numbers


@pytest.mark.parametrize("number", CASES)
def test_the_objective_is_the_published_one(numbers, number):
  case = {
    key.removeprefix(f"mf_{number}_"): value
    for key, value in numbers.items()
    if key.startswith(f"mf_{number}_")
  }
  guidance, power, offset = CASES[number]
  with jax.enable_x64(True):
    # As many labels as were drawn to be dropped, the first ones.
    dropped = (case["drop_uniform"] < DROPS[number]).sum()
    y = np.where(np.arange(4) < dropped, NONE, numbers["labels"])
    if guidance is not None:
      guidance = meanflow.Guidance(dj.conditions.without_class(NONE), *guidance)
    made = objective(
      stand_in(numbers), power=power, offset=offset, guidance=guidance
    )
    examples = meanflow.Spans(
      numbers["images"], {"y": y}, case["t"], case["r"], case["noise"], None
    )
    loss = made.loss((), examples, jax.random.key(0))
    total = loss * numbers["images"][0].size
    near((total / (total + offset) ** power).mean(), case["loss"])


@pytest.mark.parametrize("case", ["mf_0", "py_0"])
def test_the_derivative_is_the_published_one(numbers, case):
  get = lambda name: numbers[f"{case}_{name}"]
  with jax.enable_x64(True):
    x0, eps, t, s = numbers["images"], get("noise"), get("t"), get("r")
    tau = t.reshape(-1, 1, 1, 1)
    z, v = (1 - tau) * x0 + tau * eps, eps - x0
    y = 0 * numbers["labels"] if case == "py_0" else numbers["labels"]
    if case == "mf_0":
      y = np.where(np.arange(4) < (get("drop_uniform") < 0.1).sum(), NONE, y)
    U, aim = meanflow.identity(
      lambda z, t: stand_in(numbers)(z, t, {"y": y, "s": s}), FLOW, z, t, s,
      v, v,
    )  # fmt: skip
    near(U, get("u"))
    near(aim, v - (t - s).reshape(-1, 1, 1, 1) * get("du_dt"))


def test_the_improved_form_is_the_published_one(numbers):
  # A second head predicts v there; scale and interval are inputs of both.
  a, b, c, d = numbers["coefs"]
  get = lambda name: numbers[f"imf_0_{name}"]
  wide = lambda v: v.reshape(-1, 1, 1, 1)
  with jax.enable_x64(True):
    t, s, omega = get("t"), get("r"), get("omega")
    flat = get("fm_mask")  # where all of time is guided
    low = np.where(flat, 0, get("t_min_uniform") / 2)
    high = np.where(flat, 1, 0.5 + get("t_max_uniform") / 2)
    x0, eps, y = numbers["images"], get("noise"), numbers["labels"]
    z, v = (1 - wide(t)) * x0 + wide(t) * eps, eps - x0
    told = lambda omega, y, length: wide(
      c * (1 - 1 / omega) + d * y / NONE + length / 10
    )
    inside = np.where((low <= t) & (t <= high), omega, 1.0)
    head = a * z + b * np.cos(z - wide(t))
    strong = head + told(inside, y, 1.0)
    weak = head + told(1.0, 0 * y + NONE, 1.0)
    U, aim = meanflow.identity(
      lambda z, t: (
        a * z + b * jnp.sin(2 * z + wide(t + (t - s) / 2))
        + told(omega, y, high - low)
      ),
      FLOW, z, t, s,
      meanflow.guided(v, strong, weak, 1.0, 1 - 1 / wide(inside)), strong,
    )  # fmt: skip
    near(U, get("u"))
    near(((U - aim) ** 2).mean(), get("mse_u"))


def test_the_sampler_is_the_published_one(numbers):
  with jax.enable_x64(True):
    predict = dj.predictor(stand_in(numbers), FLOW, target=targets.flow)
    predict = dj.given(predict, {"y": numbers["labels"]})
    times, x = numbers["mf_sample_t"], numbers["mf_sample_start"]
    xs = [x]
    for t, s in zip(times[:-1], times[1:], strict=True):
      x, _ = meanflow.step(predict, FLOW, x, t, s, 0 * x)
      xs.append(x)
    near(np.stack(xs), numbers["mf_sample_x"])


# ------------------------------------------------------------- closed forms


def average(path, *, wrong=0.0):
  """The exact average velocity, off by a part, as a network."""
  schedule, mean, std = PATHS[path]

  def apply(params, x_t, t, cond, key):
    del params, key
    x_s = flow_map(schedule, mean, std, x_t, t, cond["s"])
    (size, tau), (size_s, tau_s) = (
      [
        process.per_example(part, x_t)
        for part in meanflow.straight(schedule, v)
      ]
      for v in (t, cond["s"])
    )
    return (1 + wrong) * (x_t / size - x_s / size_s) / (tau - tau_s)

  return apply


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_the_exact_average_alone_costs_nothing(path, improved):
  schedule, mean, std = PATHS[path]
  data = Mixture((mean,), (1.0,), std)
  with jax.enable_x64(True):
    x0 = {"image": data.sample(jax.random.key(1), (64, 5))}
    state, losses = dj.state.TrainState(jnp.int32(0), (), {}, ()), []
    for wrong in (0.0, -0.01, 0.01):
      made = meanflow.meanflow(
        average(path, wrong=wrong), schedule, equal=0.0,
        draw=dj.timesteps.drawn_by(lambda u, T: T * (0.02 + 0.9 * u)),
        teacher=lambda state: data.predictor(schedule, targets.flow),
      )  # fmt: skip
      drawn = made.draw(jax.random.key(0), state, x0)
      assert (drawn.examples.s < drawn.examples.t).all()
      losses.append(made.loss((), drawn.examples, jax.random.key(0)).mean())
    assert losses[0] < 1e-20
    assert min(losses[1:]) > 1e-6


def test_the_number_of_the_paper_sheet():
  # N(0.3, 0.7^2), z = 1.1, from 0.8 to 0.3: U, and the wrong sign's value.
  data = Mixture((0.3,), (1.0,), 0.7)
  with jax.enable_x64(True):
    z, t, s = jnp.array([[1.1]]), jnp.array([0.8]), jnp.array([0.3])
    p = data.predictor(FLOW, targets.flow)(z, t)
    apply = average("flow")
    U, aim = meanflow.identity(
      lambda z, t: apply(None, z, t, {"s": s}, None), FLOW, z, t, s,
      p.output, p.output,
    )  # fmt: skip
    np.testing.assert_allclose([U.item(), aim.item()], 0.3085491, atol=1e-7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_any_number_of_exact_steps_ends_in_the_same_place(path, calls):
  schedule, mean, std = PATHS[path]
  with jax.enable_x64(True):
    T = 0.99 * schedule.T
    apply = average(path)
    predict = dj.predictor(
      lambda x, t, cond: apply(None, x, t, cond, None), schedule,
      target=targets.flow,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (16, 3)) * schedule.noise_scale(T)
    got, _ = dj.sample(
      meanflow.step, predict, schedule, x.shape, jax.random.key(0), x_T=x,
      pairs=dj.timesteps.real(np.linspace(T, 0, calls, endpoint=False)),
    )  # fmt: skip
    near(got, flow_map(schedule, mean, std, x, T, 0.0))


def test_what_guidance_learns_is_guidance():
  # Where v averages to the strong one: omega / (1 - kappa) of the difference.
  strong, weak, omega, kappa = 2.0, 0.5, 1.2, 0.4
  learnt = strong
  for _ in range(200):
    learnt = meanflow.guided(strong, learnt, weak, omega, kappa)
  want = weak + omega / (1 - kappa) * (strong - weak)
  np.testing.assert_allclose(learnt, want, rtol=1e-12)


def test_the_weight_changes_the_gradient_alone():
  error = jax.random.normal(jax.random.key(0), (4, 3))
  f = functools.partial(meanflow.adaptive, power=0.5, offset=0.1)
  loss, pull = jax.vjp(f, error)
  np.testing.assert_allclose(loss, (error**2).mean(axis=1), rtol=1e-6)
  (grad,) = pull(jnp.ones(4))
  weight = ((error**2).sum(axis=1) + 0.1) ** -0.5
  np.testing.assert_allclose(grad, 2 * weight[:, None] * error, rtol=1e-5)


def test_the_two_times_are_sorted_and_far_apart_in_every_way():
  made = objective(lambda x_t, t, cond: x_t, equal=0.5)
  state = dj.state.TrainState(jnp.int32(3), (), {}, ())
  batch = {"image": jnp.zeros((4000, 1))}
  first, again = (made.draw(jax.random.key(0), state, batch) for _ in "ab")
  np.testing.assert_array_equal(first.examples.s, again.examples.s)
  t, s = first.examples.t, first.examples.s
  assert (s <= t).all()
  share = (s == t).mean()
  assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(4000)
  # Of two independent logit-normals, sorted: mean difference 2 / sqrt(pi)
  # of the deviation, in the logit.
  apart = (jax.scipy.special.logit(t) - jax.scipy.special.logit(s))[s < t]
  n = len(apart)
  assert abs(apart.mean() - 2 / np.sqrt(np.pi)) < 5 * 0.86 / np.sqrt(n)
  assert abs(apart.std() - np.sqrt(2 - 4 / np.pi)) < 0.1


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  ("schedule", "options", "message"),
  [
    (dj.schedules.cosine(10), {}, "meanflow needs continuous time, and"),
    (FLOW, {"equal": 1.5}, r"equal=1.5 must be in \[0, 1\]"),
  ],
)
def test_what_cannot_be_learnt_is_refused(schedule, options, message):
  with pytest.raises(ValueError, match=message):
    meanflow.meanflow(None, schedule, **options)
