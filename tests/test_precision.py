"""float32 is enough: every solver on every schedule, spacing and step count."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN

import diffusion_jax as dj
from diffusion_jax import schedules, solvers, spacing

T = 1000  # of all: one program walks all cases side by side
SCHEDULES = {
  "linear": schedules.linear,
  "linear to .04": functools.partial(schedules.linear, beta_end=0.04),
  "quadratic": schedules.quadratic,
  "constant": schedules.constant,
  "constant .04": functools.partial(schedules.constant, beta=0.04),
  "warmup": functools.partial(schedules.warmup, fraction=0.1),
  "jsd": schedules.jsd,
  "cosine": schedules.cosine,
  "sigmoid": schedules.sigmoid,
}
CASES = list(itertools.product(SCHEDULES, spacing.NAMES))
STEPS = (2, 5, 20)
SOLVERS = {
  "ancestral": dj.ancestral_step,
  "ddim": dj.ddim_step,
  "ddim, eta 1": functools.partial(dj.ddim_step, eta=1.0),
  "heun": solvers.heun_step,
  "dpm": solvers.dpm(3),
  "sde": solvers.dpm(2, eta=1.0),
  "deis": solvers.deis(3),
  "unipc": solvers.unipc(3),
  "unipc, log_snr": solvers.unipc(3, axis="log_snr"),
}


@functools.cache
def tables() -> dict[str, dj.schedules.Table]:
  with jax.enable_x64(True):
    return {name: make(T) for name, make in SCHEDULES.items()}


@functools.cache
def walks(num: int) -> np.ndarray:
  """[cases, num, 2] rows (t, s)."""
  return np.stack([spacing.named(tables()[s], name, num) for s, name in CASES])


def ends(solver, dtype) -> list[np.ndarray]:
  """Where four samples end, [cases, 4, 1] for each of ``STEPS``."""
  solver = dj.samplers.as_solver(solver)
  rng = np.random.default_rng(0)
  with jax.enable_x64(dtype == np.float64):

    def draw():
      return jnp.asarray(rng.normal(size=(4, 1)), dtype)

    every = jax.tree.map(
      lambda *x: jnp.asarray(np.stack(x), dtype),
      *(tables()[name] for name, _ in CASES),
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, None, 0))
    def move(schedule, pair, x, eps, history):
      # What eps says of x0 is lost in float32 where alpha is 1e-7, whatever
      # the solver does.
      predict = GAUSSIAN.predictor(schedule, dj.targets.v)
      predict = dj.clipped(predict, schedule)
      x, _, history = solver.step(predict, schedule, x, *pair, eps, history)
      return x, history

    found = []
    for num in STEPS:
      x = jnp.broadcast_to(draw(), (len(CASES), 4, 1))
      history = jax.vmap(solver.init)(x, jnp.asarray(walks(num)[:, 0, 0]))
      for pairs in walks(num).swapaxes(0, 1):
        x, history = move(every, pairs, x, draw(), history)
      found.append(np.asarray(x))
    return found


def gain(num: int) -> np.ndarray:
  """By how much the longest move multiplies eps_hat's error, for each case."""
  gains = []
  for (name, _), pairs in zip(CASES, walks(num), strict=True):
    schedule, (t, s) = tables()[name], pairs.T
    alpha, sigma = np.asarray(schedule.alpha), np.asarray(schedule.sigma)
    gains.append((alpha[s] * sigma[t] / alpha[t])[s > 0].max(initial=0))
  return np.array(gains)


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_is_enough(name):
  single, double = (ends(SOLVERS[name], d) for d in (np.float32, np.float64))
  for num, x, exact in zip(STEPS, single, double, strict=True):
    assert np.isfinite(x).all() and np.isfinite(exact).all()
    error = np.abs(x - exact).max(axis=(1, 2))
    far = error > 1e-4
    if name == "deis":  # its weights multiply how eps_hat is rounded
      far = (error > 1e-3) & (gain(num) < 20)
    assert not far.any(), (num, CASES[np.argmax(far)])


def test_points_too_close_for_a_step_are_not_used():
  # They would be extrapolated from 2e-5 to 0.4.
  schedule = schedules.cosine(T)
  pairs = spacing.named(schedule, "log_snr", 5)
  x_T = np.array([-1.0, 1.0, 2.0], np.float32).reshape(3, 1)
  x, _ = dj.sample(
    solvers.unipc(3), dj.clipped(GAUSSIAN.predictor(schedule), schedule),
    schedule, x_T.shape, jax.random.key(0), pairs=pairs, x_T=jnp.asarray(x_T),
  )  # fmt: skip
  exact = GAUSSIAN.mean + GAUSSIAN.std * x_T
  assert np.sqrt(np.mean((x - exact) ** 2)) < 0.25  # 1.8 if they were
