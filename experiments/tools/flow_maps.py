"""Maps from noise to data in the plane, learned by a small network.

The data are a mixture of Gaussians, so the probability flow and its end are
known: in seconds one can see, and measure, what a method of one network call
learns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import diffusion_jax as dj

SCHEDULE = dj.continuous.flow()
MIXTURE = dj.mixtures.around(
  jnp.array([[-1.0, -0.6], [0.9, -0.8], [0.1, 0.9]]), 0.25
)
STD = 0.8  # of the data, about


def init(key: jax.Array, width: int = 64) -> list[tuple[Any, Any]]:
  """A network of three layers, whose output starts at 0."""
  sizes = [(2 + 4 * 2, width), (width, width), (width, 2)]
  keys = jax.random.split(key, len(sizes))
  layers = [
    (jax.random.normal(k, size) / size[0] ** 0.5, jnp.zeros(size[1]))
    for k, size in zip(keys, sizes, strict=True)
  ]
  return [*layers[:-1], (0 * layers[-1][0], layers[-1][1])]


def apply(params, x_t, t, cond, key):
  """The network, a function of x_t, t, and of t - s if there is an s."""
  del key
  s = t if cond is None else cond["s"]
  times = [
    f(k * v) for v in (t, t - s) for k in (1.5, 3) for f in (jnp.sin, jnp.cos)
  ]
  h = jnp.concatenate([x_t, jnp.stack(times, axis=1)], axis=1)
  for w, b in params[:-1]:
    h = jax.nn.silu(h @ w + b[None])
  w, b = params[-1]
  return h @ w + b[None]


def exact_teacher(state) -> dj.prediction.Predict:
  """The exact denoiser, for methods that learn from one."""
  del state
  return dj.mixtures.predictor(SCHEDULE, MIXTURE, target=dj.targets.flow)


# By name: the objective, the arguments of its predictor, and its step.
DRAW = dj.timesteps.drawn_by(dj.timesteps.logit_normal(0.0, 1.6))
EDM = {"target": dj.targets.edm(STD), "scale": dj.edm.c_in(STD), "clock": None}
METHODS = {
  "consistency": (
    functools.partial(
      dj.consistency.consistency, nearer=dj.consistency.stages(150),
      draw=DRAW, **EDM,
    ),
    EDM,
    dj.consistency.renoise_step,
  ),
  "MeanFlow": (
    functools.partial(dj.meanflow.meanflow, draw=DRAW, equal=0.5, power=0.0),
    {"target": dj.targets.flow},
    dj.meanflow.step,
  ),
}  # fmt: skip


def learn(name: str, num_steps: int, *, taught: bool = True, batch: int = 256):
  """Learns the map.

  Args:
    name: In ``METHODS``.
    num_steps: Updates.
    taught: Learn from the exact denoiser; else from the data.
    batch: Points in a step.

  Returns:
    ``(x_T, num_calls) -> x_0``.
  """
  make, read, step = METHODS[name]
  objective = make(apply, SCHEDULE, teacher=exact_teacher if taught else None)
  tx = optax.adam(optax.cosine_decay_schedule(3e-3, max(num_steps, 1)))
  key = jax.random.key(0)

  def body(state, _):
    drawn = dj.mixtures.draw(
      MIXTURE, jax.random.fold_in(jax.random.key(1), state.step), batch
    )
    state, metrics = dj.training.train_step(
      state, {"image": drawn}, key, objective=objective, tx=tx
    )
    return state, metrics.loss

  start = dj.state.create(init(jax.random.key(2)), tx, (0.99,))
  run = jax.jit(lambda state: jax.lax.scan(body, state, length=num_steps))
  state, _ = run(start)
  params = state.ema["0.99"]
  predict = dj.predictor(
    lambda x_t, t, cond=None: apply(params, x_t, t, cond, None), SCHEDULE,
    **read,
  )  # fmt: skip

  def mapped(x_T, calls: int = 1):
    pairs = dj.spacing.named(SCHEDULE, "even", calls)
    x, _ = dj.sample(
      step,
      predict,
      SCHEDULE,
      x_T.shape,
      jax.random.key(3),
      pairs=pairs,
      x_T=x_T,
    )
    return x

  return mapped


def exact(x_T):
  """The end of the probability flow, by 100 steps of UniPC."""
  pairs = dj.spacing.named(SCHEDULE, "scales", 100)
  x, _ = dj.sample(
    dj.solvers.unipc(), exact_teacher(None), SCHEDULE, x_T.shape,
    jax.random.key(0), pairs=pairs, x_T=x_T,
  )  # fmt: skip
  return x
