"""float32 is enough: every solver on every schedule, spacing and step count.

And it stays float32 where JAX has been told to know float64.
"""

import functools
import itertools
import types

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
CONTINUOUS = dj.continuous.flow()
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


@pytest.fixture
def wide():
  with jax.enable_x64(True):
    yield


def floats(tree) -> set[str]:
  """The dtypes of all arrays that are not integers."""
  kinds = {x.dtype for x in jax.tree.leaves(tree)}
  return {kind.name for kind in kinds if jnp.issubdtype(kind, jnp.inexact)}


NETWORKS = {
  "unet": {}, "unet fourier": {"embedding": "fourier"}, "edm2": {},
  "dit": {}, "jit": {"class_tokens": 2, "class_start": 1, "num_classes": 3},
  "classifier": {"num_labels": 3},
}  # fmt: skip


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_float32_stays_so(name):
  kind, options = dj.models.named.NETWORKS[name.split()[0]], NETWORKS[name]
  small = (
    {"channels": 16, "multipliers": (1,), "num_blocks": 1,
     "attention_levels": (0,), "head_channels": 8}
    if hasattr(kind, "channels")
    else {"patch": 4, "width": 16, "depth": 2, "heads": 2}
  )  # fmt: skip
  net, more = kind(**small, **options), {}
  if "num_classes" in options:
    more = {"cond": {"y": jnp.zeros(2, jnp.int32)}}
  x, t = jnp.zeros((2, 8, 8, 1), jnp.float32), jnp.ones(2, jnp.float32)
  out, params = jax.eval_shape(
    lambda: net.init_with_output(jax.random.key(0), x, t, **more)
  )
  assert floats(params) == floats(out) == {"float32"}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", dj.optimizers.NAMES)
def test_training_in_float32_stays_so(name):
  # The loop of a block is one only if no dtype changes.
  params = {
    "kernel": jnp.ones((3, 3), jnp.float32), "bias": jnp.ones(3, jnp.float32),
  }  # fmt: skip
  schedule = schedules.cosine(20)
  objective = dj.objectives.diffusion(
    lambda p, x, t, cond, key: x @ p["kernel"] + p["bias"][None], schedule,
    loss_at=functools.partial(
      dj.losses.weighted_mse, weight=dj.weights.truncated_snr()
    ),
  )  # fmt: skip
  tx = dj.optimizers.optimizer(
    lr=1e-3, name=name, clip=1.0, warmup_steps=2, decay_steps=9
  )
  history = dj.importance.history(20)
  state = dj.state.create(params, tx, (0.9, "std0.1"), history)
  step = functools.partial(
    dj.training.train_step, objective=objective, tx=tx, ema_warmup=True
  )
  batches = {"image": jnp.ones((2, 4, 3), jnp.float32)}
  new, _ = jax.eval_shape(
    lambda: dj.training.train_block(step, state, batches, jax.random.key(0))
  )
  assert floats((new.params, new.ema)) == {"float32"}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", [*SOLVERS, "flow", "edm", "apg"])
def test_samples_in_float32_stay_so(name):
  schedule = schedules.cosine(20, dtype=jnp.float32)
  predict = dj.predictor(lambda x, t: 0.3 * x, schedule)
  more = {
    "flow": dj.flow.sde_step, "edm": dj.edm.heun(4),
    "apg": dj.apg.solver(dj.ddim_step, predict, 2.0),
  }  # fmt: skip
  x_T = jnp.ones((2, 3), jnp.float32)
  x, trajectory = jax.eval_shape(
    lambda: dj.sample(
      (SOLVERS | more)[name], predict, schedule, x_T.shape, jax.random.key(0),
      pairs=spacing.even(schedule, 4), x_T=x_T, keep=(1,),
    )
  )  # fmt: skip
  assert floats((x, trajectory.x)) == {"float32"}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_images_in_float32_stay_so_on_a_schedule_of_float64(schedule):
  schedule = schedules.cosine(20) if schedule == "cosine" else CONTINUOUS
  pairs = spacing.even(schedule, 4)
  predict = dj.predictor(lambda x, t: 0.3 * x, schedule, target=dj.targets.v)
  x, t = jnp.ones((2, 4, 4, 1), jnp.float32), pairs[1, 0]
  observe = dj.restoration.downsampling((2, 2))
  visited = None if schedule.T == 20 else np.linspace(1e-3, 1, 9)

  def results():
    yield dj.q_sample(schedule, x, t, x)
    yield predict(x, t)
    yield dj.solvers.encode(predict, schedule, x, pairs)
    for given in (
      dj.restoration.pigdm, dj.restoration.tmpd, dj.restoration.dps
    ):  # fmt: skip
      yield given(predict, schedule, observe, observe(x), std=0.1)(x, t)

  assert floats(jax.eval_shape(lambda: list(results()))) == {"float32"}
  bits = jax.eval_shape(
    lambda: dj.likelihood.probability_flow(
      predict, schedule, x, jax.random.key(0), visited=visited
    )
  )
  assert bits.shape == (2,) and floats(bits) == {"float32"}


@pytest.mark.usefixtures("wide")
def test_augmented_images_in_float32_stay_so():
  augmentation = dj.augmentation
  batch = {"image": jnp.ones((2, 4, 4, 1), jnp.float32)}

  def drawn():
    given = dj.objectives.Objective(lambda key, state, batch: batch, None, 1)
    state = types.SimpleNamespace(step=0)
    return augmentation.augmented(given, 0.5).draw(
      jax.random.key(0), state, batch
    )

  assert floats(jax.eval_shape(drawn)) == {"float32"}
