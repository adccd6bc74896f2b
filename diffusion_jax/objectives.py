"""What training minimises: a random draw for a batch, and its losses.

``training.train_step`` uses nothing else: it draws once for the whole batch,
then computes a loss for each example. A diffusion model, a classifier of noisy
images and a student of a teacher are objectives of one training program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import importance, losses, process, targets, timesteps
from diffusion_jax.classifier_guidance import log_prob
from diffusion_jax.losses import LossAt
from diffusion_jax.prediction import Cond, Predict, Scale, predictor
from diffusion_jax.process import Batch
from diffusion_jax.schedules import Schedule, is_discrete
from diffusion_jax.state import Params, TrainState
from diffusion_jax.targets import Target

BINS = 1000  # of continuous time


class Draw(NamedTuple):
  """What is drawn for a batch.

  Attributes:
    examples: A pytree whose arrays have an entry for each example; split into
      micro-batches along that axis.
    bin: Which of ``Objective.bins`` equal parts of time each example falls in;
      the cleanest is 0.
    scale: Multiplies each loss, to correct for times that are not drawn from
      the loss's own distribution.
  """

  examples: Any
  bin: Int[Array, " B"]
  scale: Float[Array, " B"]


class Objective(NamedTuple):
  """What training minimises.

  Attributes:
    draw: ``(key, state, batch) -> Draw``, from the run's training key.
    loss: ``(params, examples, key) -> [B]``; the key is dropout's.
    bins: How many parts of time logs and loss-aware sampling distinguish.
  """

  draw: Callable[[Key[Array, ""], TrainState, Any], Draw]
  loss: Callable[[Params, Any, Key[Array, ""]], Float[Array, " B"]]
  bins: int


@runtime_checkable
class Apply(Protocol):
  """A network in training."""

  def __call__(
    self, params: Params, x_t: Batch, t: Any, cond: Cond, key: Key[Array, ""], /
  ) -> Any:
    """The network's output, with dropout drawn from the key."""
    ...


# A second network to learn from: with frozen parameters (state.teacher), with
# an average of the student's, or independent of the state.
Teacher = Callable[[TrainState], Predict]


class Noised(NamedTuple):
  """Examples of diffusion training: data, a time and noise."""

  x0: Batch
  cond: Cond
  t: Any
  eps: Batch


def diffusion(
  apply: Apply,
  schedule: Schedule,
  *,
  target: Target = targets.eps,
  variance: str = "fixed_small",
  scale: Scale | None = None,
  clock: Scale | None = None,
  loss_at: LossAt = losses.weighted_mse,
  draw: Callable[..., Any] = timesteps.uniform,
  condition: Callable[..., Cond] | None = None,
  uncertainty: Callable[[Params, Any], Float[Array, " B"]] | None = None,
) -> Objective:
  """Trains a diffusion model (DDPM, algorithm 1).

  Args:
    apply: The network.
    schedule: The noise schedule.
    target: What the network predicts.
    variance: See ``prediction.predictor``.
    scale: Scales its input, see ``prediction.predictor``.
    clock: The time it gets, see ``prediction.predictor``.
    loss_at: ``(predict, schedule, x0, t, eps) -> [B]``: a function of
      ``losses`` with its options bound.
    draw: ``(key, B, T) -> t``, see ``timesteps``.
    condition: ``(batch, key, step) -> cond``, see ``conditions``; by default
      there is none.
    uncertainty: ``(params, t) -> u``, see ``losses.uncertain``; by default the
      loss is not changed.

  Returns:
    The objective, for batches with "image", [B, H, W, C] in [-1, 1].
  """

  def loss(params, examples, key):
    x0, cond, t, eps = examples
    predict = predictor(
      lambda x_t, t: apply(params, x_t, t, cond, key), schedule,
      target=target, variance=variance, scale=scale, clock=clock,
    )  # fmt: skip
    loss = loss_at(predict, schedule, x0, t, eps)
    if uncertainty is None:
      return loss
    return losses.uncertain(loss, uncertainty(params, t))

  return Objective(noising(schedule, draw, condition), loss, bins_of(schedule))


def classification(
  apply: Apply,
  schedule: Schedule,
  *,
  draw: Callable[..., Any] = timesteps.uniform,
) -> Objective:
  """Trains a classifier of noisy images: -log p(y | x_t), in nats.

  The loss of a uniform guess is the log of the number of classes.

  Args:
    apply: The classifier; it returns logits.
    schedule: The noise schedule.
    draw: ``(key, B, T) -> t``, see ``timesteps``.

  Returns:
    The objective, for batches with "image" and "label".
  """

  def loss(params, examples, key):
    x0, y, t, eps = examples
    x_t = process.q_sample(schedule, x0, t, eps)
    return -log_prob(apply(params, x_t, t, None, key), y)

  def label(batch, key, step):
    del key, step
    return batch["label"]

  return Objective(noising(schedule, draw, label), loss, bins_of(schedule))


def bins_of(schedule: Schedule) -> int:
  """The number of steps, or of equal parts of continuous time."""
  return int(schedule.T) if is_discrete(schedule) else BINS


def bin_of(schedule: Schedule, t: Any) -> Int[Array, " B"]:
  """The bin that each t falls in; the cleanest is 0."""
  bins = bins_of(schedule)
  whole = is_discrete(schedule)
  bin = t - 1 if whole else (t * (bins / schedule.T)).astype(jnp.int32)
  return jnp.clip(bin, 0, bins - 1)


def noising(schedule: Schedule, draw, condition):
  """Draws times (by past losses, if the state has them) and noise.

  Args:
    schedule: The noise schedule.
    draw: See ``diffusion``.
    condition: See ``diffusion``.

  Returns:
    The ``draw`` of an objective, whose examples are ``Noised``.
  """
  bins = bins_of(schedule)
  whole = is_discrete(schedule)

  def drawn(key, state, batch):
    x0 = batch["image"]
    process.check_floats(x0, "image")
    key_t, key_eps, _ = jax.random.split(jax.random.fold_in(key, state.step), 3)
    if state.history is None:
      t, scale = draw(key_t, len(x0), schedule.T), jnp.ones(len(x0))
    else:
      t, scale = importance.draw(key_t, len(x0), state.history)
      if not whole:  # anywhere in its bin
        inside = jax.random.uniform(jax.random.fold_in(key_t, 1), t.shape)
        t = (t - inside) * (schedule.T / bins)
    eps = jax.random.normal(key_eps, x0.shape, x0.dtype)
    cond = None if condition is None else condition(batch, key, state.step)
    return Draw(Noised(x0, cond, t, eps), bin_of(schedule, t), scale)

  return drawn
