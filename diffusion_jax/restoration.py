"""Restoration: the clean data behind y = A x_0 + std noise, A linear.

A is one of ``observations``. One formula turns an unconditional network into
one that predicts x_0 given x_t and y,

  E[x_0 | x_t, y] = x0_hat + (sigma^2 / alpha) J^T A^T S^-1 (y - A x0_hat),
  S = A Cov A^T + std^2,  J = d x0_hat / d x_t,

The methods differ in Cov, their covariance of x_0 given x_t: 0 (DPS), r^2 I
(PiGDM), or (sigma^2 / alpha) J (TMPD), the true one. Each is ``predict ->
predict``, so it works with every step and solver. J of a network that predicts
eps is a difference of two numbers close to 1 / alpha, and loses precision where
alpha is small; that of one that predicts x_0 or v does not. Where alpha is 0, y
is not used: sampling that starts there uses it from its second step on.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from diffusion_jax import samplers
from diffusion_jax.observations import (
  Observe as Observe,
  Observed as Observed,
  blurring as blurring,
  downsampling as downsampling,
  inpainting as inpainting,
  measuring as measuring,
  transpose as transpose,
)
from diffusion_jax.prediction import Predict, read
from diffusion_jax.process import Batch, per_example, rates, times
from diffusion_jax.schedules import Schedule, Time


def dps(
  predict: Predict, schedule: Schedule, observe: Observe, y: Observed, *,
  std: float,
) -> Predict:  # fmt: skip
  """Treats x_0 as certain: Cov = 0 (DPS, Chung et al. 2023).

  On Gaussian data of posterior variance r^2, with A = I, it goes r^2 / std^2
  of the way from x0_hat to y, where r^2 / (r^2 + std^2) is right: it trusts y
  too much, especially at high noise. It divides by std^2, so that few large
  steps can be unstable. ``dps_step`` is the published code.

  Args:
    predict: The unconditional network.
    schedule: The noise schedule.
    observe: A.
    y: The observation of each image.
    std: Standard deviation of its noise, above 0.

  Returns:
    The network given y.

  Raises:
    ValueError: If std is not above 0.
  """
  if not std > 0:
    raise ValueError(
      f"{std=}: DPS divides by the noise of y, which must be above 0; use pigdm"
    )
  return _given(predict, schedule, observe, y, std, lambda u, *_: 0 * u)


def pigdm(
  predict: Predict,
  schedule: Schedule,
  observe: Observe,
  y: Observed,
  *,
  std: float = 0.0,
  data_var: float = 1.0,
  iterations: int = 30,
) -> Predict:
  """Takes Cov = r^2 I (PiGDM, Song et al. 2023).

  r^2 = data_var sigma^2 / (data_var alpha^2 + sigma^2), which is exact for
  data N(m, data_var I); the paper has data_var = 1. With std = 0, S^-1 A is
  the pseudoinverse after which the method is named.

  Args:
    predict: The unconditional network.
    schedule: The noise schedule.
    observe: A.
    y: The observation of each image.
    std: Standard deviation of its noise.
    data_var: Variance of the clean data.
    iterations: Largest number of conjugate-gradient steps for S^-1; one is
      exact if A A^T is a multiple of I, as for inpainting and downsampling.

  Returns:
    The network given y.

  Raises:
    ValueError: If a number is out of range.
  """
  if not data_var > 0:
    raise ValueError(f"{data_var=} must be above 0")

  def covariance(u, alpha, sigma, pull_back):
    del pull_back
    return data_var * sigma**2 / (data_var * alpha**2 + sigma**2) * u

  return _given(
    predict, schedule, observe, y, std, covariance, iterations=iterations
  )


def tmpd(
  predict: Predict, schedule: Schedule, observe: Observe, y: Observed, *,
  std: float = 0.0, iterations: int = 30,
) -> Predict:  # fmt: skip
  """Takes Cov = (sigma^2 / alpha) J, the true one (TMPD, Boys et al. 2023).

  Exact for any Gaussian data, but needs one more pass through the network for
  each iteration.

  Args:
    predict: The unconditional network.
    schedule: The noise schedule.
    observe: A.
    y: The observation of each image.
    std: Standard deviation of its noise.
    iterations: Largest number of conjugate-gradient steps.

  Returns:
    The network given y.

  Raises:
    ValueError: If a number is out of range.
  """

  def covariance(u, alpha, sigma, pull_back):
    # J is symmetric, up to errors of the network.
    return sigma**2 / alpha * pull_back(u)

  return _given(
    predict, schedule, observe, y, std, covariance, iterations=iterations
  )


def _given(
  predict, schedule, observe, y, std, covariance, *, iterations=1
) -> Predict:
  """The formula of the module, with (u, alpha, sigma, J^T) -> Cov u."""
  if not 0 <= std < math.inf or iterations < 1:
    raise ValueError(f"{std=} must be at least 0, {iterations=} at least 1")

  def given_y(x_t, t, cond=None):
    t = times(t, x_t)
    alpha, sigma = rates(schedule, t, x_t)
    # Where x_t is all noise J is 0, too, and x0_hat stays that of the network.
    alpha = jnp.where(alpha > 0, alpha, jnp.inf)
    _check_shape(observe, y, x_t)

    def denoise(x):
      p = predict(x, t, cond)
      return p.x0_hat, p

    x0_hat, transposed, p = jax.vjp(denoise, x_t, has_aux=True)

    def pull_back(u):
      return transposed(u)[0]

    def S(w):
      back = transpose(observe, w, x0_hat)
      return observe(covariance(back, alpha, sigma, pull_back)) + std**2 * w

    w = conjugate_gradients(S, _unexplained(observe, y, x0_hat), iterations)
    push = pull_back(transpose(observe, w, x0_hat))
    x0_hat = x0_hat + sigma**2 / alpha * push
    return read(schedule, x_t, t, x0_hat, p.raw, variance=p.variance)

  return given_y


def dps_step(
  predict: Predict,
  schedule: Schedule,
  x_t: Batch,
  t: Time,
  s: Time,
  eps: Batch,
  *,
  observe: Observe,
  y: Observed,
  zeta: float | Float[Array, ""],
  step: samplers.Step = samplers.ancestral_step,
) -> tuple[Batch, Batch]:
  """A step, minus zeta grad |y - A x0_hat(x_t)| (DPS, algorithm 1).

  The gradient is that of the norm and not of its square, as in the published
  code; here it is the norm of each image, so that none depends on its batch.

  Args:
    predict: The unconditional network.
    schedule: The noise schedule.
    x_t: The sample at t.
    t: The time of x_t.
    s: The time to move to.
    eps: Standard Gaussian noise, the shape of x_t.
    observe: A.
    y: The observation of each image.
    zeta: The paper has 0.3 for upsampling and deblurring, 0.5 for inpainting.
    step: The step to correct.

  Returns:
    x_s and the unconditional prediction of the clean data.
  """
  _check_shape(observe, y, x_t)

  def distance(x):
    p = predict(x, t)
    squares = _unexplained(observe, y, p.x0_hat) ** 2
    square = squares.sum(axis=tuple(range(1, y.ndim)))
    # The root has no gradient at 0, but there is nothing to correct there.
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny)).sum(), p

  gradient, p = jax.grad(distance, has_aux=True)(x_t)
  x_s, x0_hat = step(lambda *_: p, schedule, x_t, t, s, eps)
  return x_s - zeta * gradient, x0_hat


def _unexplained(observe: Observe, y: ArrayLike, x0_hat: Batch) -> Observed:
  """What x0_hat leaves of y, in the images' precision: y - A x0_hat."""
  seen = observe(x0_hat)
  return jnp.subtract(y, seen).astype(seen.dtype)


def _check_shape(observe: Observe, y: ArrayLike, x: Batch) -> None:
  shape = jax.eval_shape(observe, x).shape
  if shape != jnp.shape(y):
    raise ValueError(
      f"y is {list(jnp.shape(y))}, but pictures {list(x.shape)} are observed "
      f"as {list(shape)}; pass y = observe(x0) and its noise"
    )


def conjugate_gradients(
  S: Callable[[Observed], Observed], b: Observed, iterations: int
) -> Observed:
  """Solves S w = b for each example, independently of the others.

  JAX's own would treat the batch as one vector, with one step size and one
  stopping rule for all.

  Args:
    S: Symmetric, positive semidefinite.
    b: [B, ...].
    iterations: Largest number of steps; solved examples stay unchanged.

  Returns:
    w, the shape of b; the shortest one if S is singular and b in its range.
  """

  def dot(a, b):
    return per_example((a * b).sum(axis=tuple(range(1, a.ndim))), a)

  tiny = jnp.finfo(b.dtype).tiny
  solved = jnp.finfo(b.dtype).eps ** 2 * dot(b, b)

  def improve(_, carry):
    w, residual, direction = carry
    square, ahead = dot(residual, residual), S(direction)
    # Below 0 only by rounding, or where a network's J is not symmetric.
    curvature = dot(direction, ahead)
    goes = (square > solved) & (curvature > 0)
    length = jnp.where(goes, square / jnp.maximum(curvature, tiny), 0)
    rest = residual - length * ahead
    turn = dot(rest, rest) / jnp.maximum(square, tiny)
    following = jnp.where(goes, rest + turn * direction, direction)
    return w + length * direction, rest, following

  w, _, _ = jax.lax.fori_loop(0, iterations, improve, (0 * b, b, b))
  return w
