"""Editing with an unconditional model: inpaint, vary, interpolate.

Each is a few lines around the steps and the loop of sampling.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from diffusion_jax import samplers, timesteps
from diffusion_jax.prediction import Predict
from diffusion_jax.process import Batch, q_sample, q_step
from diffusion_jax.schedules import Schedule


def inpaint(
  step: samplers.Step,
  predict: Predict,
  schedule: Schedule,
  known: Batch,
  mask: Num[Array, "..."],
  key: Key[Array, ""],
  *,
  pairs: timesteps.AnyPairs | None = None,
  jump: int = 10,
  repeats: int = 10,
  first: int | Int[Array, ""] = 0,
) -> Batch:
  """Fills in unknown pixels (RePaint, Lugmayr et al. 2022, algorithm 1).

  Each step to s replaces the model's pixels by the known ones, noised to s. So
  that the others fit to them, each stretch of ``jump`` steps is repeated
  ``repeats`` times, going back by the forward process in between.

  Args:
    step: An ancestral or another stochastic step.
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    known: [B, H, W, C], clean; its unknown pixels are ignored.
    mask: 1 where known, 0 where to fill in; broadcastable to ``known``.
    key: The root of all noise.
    pairs: The steps (t, s); by default all T.
    jump: Steps per stretch; must divide the number of pairs.
    repeats: How often to take each stretch; with 1, steps only overwrite.
    first: The number of the first image, see ``samplers.sample``.

  Returns:
    [B, H, W, C]; the known pixels are exactly those given.

  Raises:
    ValueError: If pairs do not descend within 0..T, jump does not divide their
      number, repeats is below 1, the step is a solver, or the mask has a wrong
      shape.
  """
  if isinstance(step, samplers.Solver):
    raise ValueError(
      "inpainting goes back and forth, which a solver's memory cannot; pass a "
      "step, such as samplers.ancestral_step"
    )
  pairs = timesteps.every(schedule.T) if pairs is None else np.asarray(pairs)
  samplers.check_walk(pairs, schedule.T)
  if jump < 1 or len(pairs) % jump:
    raise ValueError(f"{jump=} must divide the {len(pairs)} moves of the walk")
  _check_mask(jnp.shape(mask), known.shape)
  if repeats < 1:
    raise ValueError(f"{repeats=} must be at least 1")
  stretches = jnp.asarray(pairs).reshape(-1, jump, 2)
  images, shape = first + jnp.arange(len(known)), known.shape[1:]
  key_start, key_walk, key_known, key_back = jax.random.split(key, 4)

  def stretch(x_t, stretch_pairs):
    t, s = stretch_pairs[0, 0], stretch_pairs[-1, 1]

    def once(x_t, repeat):
      keys = [jax.random.fold_in(k, repeat) for k in (key_walk, key_known)]
      x_s, _ = samplers.sample(
        _overwrite(step, schedule, known, mask, images, keys[1]),
        predict, schedule, known.shape, keys[0],
        pairs=stretch_pairs, x_T=x_t, first=first,
      )  # fmt: skip
      eps = samplers.noise(
        jax.random.fold_in(key_back, repeat), t, images, shape
      )
      return q_step(schedule, x_s, t, eps, s=s), x_s

    _, walked = jax.lax.scan(once, x_t, jnp.arange(repeats))
    return walked[-1], None

  x_T = samplers.prior(schedule, key_start, pairs[0, 0], images, shape)
  x, _ = jax.lax.scan(stretch, x_T, stretches)
  return x


def _check_mask(mask: tuple[int, ...], known: tuple[int, ...]) -> None:
  """Raises for a mask that does not broadcast to the shape of ``known``."""
  try:
    right = np.broadcast_shapes(mask, known) == known
  except ValueError:
    right = False
  if not right:
    raise ValueError(
      f"the mask is {list(mask)}, the pictures are {list(known)}: pass [B, H, "
      "W, C], [H, W, C] or, for all channels, [H, W, 1]"
    )


def _overwrite(step, schedule, known, mask, images, key) -> Callable:
  """The step, with the known pixels written over its result."""

  def overwritten(predict, schedule_, x_t, t, s, eps):
    x_s, x0_hat = step(predict, schedule_, x_t, t, s, eps)
    noise = samplers.noise(key, s, images, known.shape[1:])
    truth = q_sample(schedule, known, jnp.broadcast_to(s, len(known)), noise)
    return jnp.where(mask > 0, truth, x_s), x0_hat

  return overwritten


def vary(
  step: samplers.Step,
  predict: Predict,
  schedule: Schedule,
  x0: Batch,
  key: Key[Array, ""],
  *,
  start: float,
  pairs: timesteps.AnyPairs | None = None,
) -> Batch:
  """Noises images to a step and denoises them (SDEdit, Meng et al. 2022).

  Args:
    step: A step function.
    predict: The network, see ``prediction``.
    schedule: The noise schedule.
    x0: Clean images.
    key: The root of all noise.
    start: The step to noise to: the higher, the less is kept of the images.
    pairs: The steps (t, s); those that begin above ``start`` are left out.

  Returns:
    Images of x0's shape.

  Raises:
    ValueError: If no pair begins at or below ``start``, or it is beyond T.
  """
  pairs = timesteps.every(schedule.T) if pairs is None else np.asarray(pairs)
  if start > schedule.T:
    raise ValueError(f"{start=} must be a step in 1..T={schedule.T}")
  kept = pairs[pairs[:, 0] <= start]
  if not len(kept):
    raise ValueError(f"{start=} is below every step of the walk")
  t = kept[0, 0].item()
  key_up, key_down = jax.random.split(key)
  eps = samplers.noise(key_up, t, jnp.arange(len(x0)), x0.shape[1:])
  x_t = q_sample(schedule, x0, jnp.full(len(x0), t), eps)
  x, _ = samplers.sample(
    step, predict, schedule, x0.shape, key_down, pairs=kept, x_T=x_t
  )
  return x


def slerp(
  a: Float[Array, "*image"],
  b: Float[Array, "*image"],
  weights: Float[Array, " N"],
) -> Float[Array, "N *image"]:
  """Interpolates between two noises, on the great circle through them.

  sin((1 - w) angle) / sin(angle) a + sin(w angle) / sin(angle) b. On a straight
  line the norm would be too small in between; on the circle it is that of
  noise. Pass the result to ``samplers.sample`` as x_T, with a deterministic
  step. Where the angle is 0 the circle is the straight line; through opposite
  noises, a = -b, the circle is not unique.

  Args:
    a: The noise at weight 0.
    b: The noise at weight 1.
    weights: Where on the circle, from 0 to 1.

  Returns:
    One noise for each weight.
  """

  def unit(x):
    """Of norm 1, without the square of anything large or small."""
    x = x / jnp.maximum(abs(x).max(), jnp.finfo(x.dtype).tiny)
    return x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)

  cosine = (unit(a) * unit(b)).sum()
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))

  def share(w):
    """sin(w angle) / sin(angle), which is w where the angle is 0."""
    return w * jnp.sinc(w * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)

  w = jnp.asarray(weights).reshape(-1, *(1,) * a.ndim)
  return share(1 - w) * a[None] + share(w) * b[None]
