"""Samples from a compiled network, in pieces that can show progress."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import guiding, networks, processes, samplers
from diffusion_jax.runs.guiding import GuidingClassifier
from diffusion_jax.runs.options import SamplingOptions


class Generator:
  """Draws images 0, 1, 2, ... of a key, for any parameters of one network.

  Sampling is split into up to 50 equal pieces, with one compiled program for
  all of them, so that there is progress to report and an animation to show.
  Noise is keyed by image and step, and a solver's memory is passed on: neither
  pieces nor batches change a pixel. A batch is split over the devices, padded
  to a multiple of them. If there are classes, image k is of class
  ``classes[k % len(classes)]``, by default of each in turn.

  Args:
    config: The run's configuration.
    net: Its network.
    image_shape: (H, W, C).
    options: The sampler's name, the classes' numbers, eta, batch and
      low_res_noise, as in a ``Plan``; and the scale of guidance,
      classifier-free unless there is a classifier; None does not guide.
      Vectors that `cond` does not name are hidden, or at their mean if they
      have no dropout.
    pairs: The steps (t, s).
    classifier: The classifier to guide with.
    low_res: The small images, [N, h, w, C], if the network upsamples; image k
      is made from ``low_res[k % N]``.
    pictures: Other images to condition on, [N, H, W, C] by name, likewise;
      missing ones are hidden.

  Attributes:
    batch: Images at a time.
    guidance: Can be changed: no scale is compiled into a program.
    low_res: Can be changed.
    pictures: Can be changed, with the same names.
    guiding: The classifier's parameters, which can be changed.
  """

  def __init__(
    self,
    config,
    net: dj.models.Backbone,
    image_shape: tuple[int, ...],
    options: SamplingOptions,
    pairs: dj.timesteps.Pairs,
    *,
    classifier: GuidingClassifier | None = None,
    low_res: np.ndarray | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
  ):
    self._config, self._net, self._options = config, net, options
    self._shape, self._pairs = tuple(image_shape), pairs
    self._schedule = processes.schedule(config)
    self._sampler = options.sampler or config.sampling.sampler
    self._classifier = classifier
    self._classes = np.array(
      guiding.classes_in_turn(config, options, classifier), np.int32
    )
    self._conditions = networks.conditions(config, self._schedule, image_shape)
    means = {v.name: v.mean for v in self._conditions.vectors if not v.dropout}
    self._given = means | networks.numbers(config, options.cond)
    self.guiding = None if classifier is None else classifier.params
    self.guidance = guiding.numbers(options.guidance)
    self.low_res = low_res
    self.pictures = {} if pictures is None else pictures
    self.batch = options.batch
    pieces = max(n for n in range(1, 51) if len(pairs) % n == 0)
    self._pieces = np.split(pairs, pieces)
    self._mesh = dj.parallel.data_mesh()
    self._rows = -(-self.batch // self._mesh.size) * self._mesh.size
    self._walk = jax.jit(self._walked)
    self._condition = jax.jit(self._conditioned)
    self._remember = jax.jit(self._remembered)
    self._noise = jax.jit(
      self._noised, out_shardings=dj.parallel.split(self._mesh)
    )

  def _step(self, *eta) -> Any:
    """The sampler, by default with its own eta."""
    return samplers.sampler(
      self._sampler,
      *eta,
      num=len(self._pairs),
      churn=self._config.sampling.get("churn"),
    )

  def _guided(self, params, step, y, scale, theirs, cond) -> tuple[Any, Any]:
    """The step and the network: with the condition, guided, clipped."""
    predict = processes.predictor(
      self._config, self._schedule, self._net, params
    )
    classifier = self._classifier
    predict, left = guiding.guided_by_name(
      predict, self._schedule, self._conditions, self._options.guidance,
      None if classifier else scale,
    )  # fmt: skip
    step, predict = samplers.guided(
      self._config, step, predict, self._schedule, self._conditions.null,
      left, cond,
    )  # fmt: skip
    if classifier is None:
      return step, predict
    return _guided_by(
      classifier._replace(params=theirs),
      step, predict, self._schedule, self._sampler, y, scale,
      dj.timesteps.above_last(self._pairs),
    )  # fmt: skip

  def _walked(
    self, params, x, history, key, pairs, first, eta, y, scale, theirs, cond
  ) -> tuple[jax.Array, Any]:
    """One piece of sampling, and the solver's memory after it."""
    constrain = jax.lax.with_sharding_constraint
    params, theirs = constrain(
      (params, theirs), dj.parallel.replicated(self._mesh)
    )
    y, cond = constrain((y, cond), dj.parallel.split(self._mesh))
    step, predict = self._guided(
      params, self._step(eta), y, scale, theirs, cond
    )
    x, kept = dj.sample(
      step,
      predict,
      self._schedule,
      (self._rows, *self._shape),
      key,
      pairs=pairs,
      x_T=x,
      first=first,
      history=history,
    )
    return x, kept.history

  def _remembered(self, x: jax.Array) -> Any:
    """A solver's memory before its first step."""
    scale = None if self._classifier else self._options.guidance
    predict = processes.predictor(self._config, self._schedule, self._net, None)
    step, _ = samplers.guided(
      self._config, self._step(), predict, self._schedule, lambda cond: cond,
      scale, None,
    )  # fmt: skip
    solver = dj.samplers.as_solver(step)
    return solver.init(x, jnp.asarray(self._pairs[0, 0]))

  def _conditioned(self, key, images, y, low_res, pictures) -> Any:
    """The condition of these images."""
    cond = self._conditions.given(
      y,
      low_res,
      self._given | pictures,
      count=self._rows,
      size=self._shape[:2],
    )
    if not self._conditions.noise:
      return cond
    return dj.conditions.noised(
      cond, self._schedule, key, self._options.low_res_noise, images
    )

  def _noised(self, key, images) -> jax.Array:
    """The noise from which these images start."""
    return dj.samplers.prior(
      self._schedule, key, self._pairs[0, 0], images, self._shape
    )

  def walk(self, params, key: jax.Array, first: int) -> Iterator[jax.Array]:
    """One batch from image ``first`` on: x_T, then x after every piece."""
    images = first + np.arange(self._rows)
    x = self._noise(key, images)
    y = None
    if len(self._classes):
      y = self._classes[images % len(self._classes)]
    low_res = None
    if self.low_res is not None:
      low_res = self.low_res[images % len(self.low_res)]
    pictures = {k: v[images % len(v)] for k, v in self.pictures.items()}
    cond = self._condition(key, images, y, low_res, pictures)
    history = self._remember(x)
    yield x
    for piece in self._pieces:
      x, history = self._walk(
        params, x, history, key, piece, first,
        self._options.eta, y, self.guidance, self.guiding, cond,
      )  # fmt: skip
      yield x

  def __call__(
    self,
    params,
    key: jax.Array,
    num: int,
    *,
    progress: Callable[[float], object] | None = None,
  ) -> np.ndarray:
    """Draws images 0..num-1.

    Args:
      params: Parameters of the network.
      key: The root of all noise.
      num: How many images.
      progress: Called with the fraction of the work that is done, in (0, 1].

    Returns:
      [num, H, W, C].
    """
    batches = -(-num // self._rows)
    finished = []
    for b in range(batches):
      x = None
      for i, x in enumerate(self.walk(params, key, b * self._rows)):
        if progress is not None:
          x.block_until_ready()  # report only what is done
          progress((b + i / len(self._pieces)) / batches)
      finished.append(dj.parallel.fetch(x))
    return np.concatenate(finished)[:num]


def _guided_by(
  classifier: GuidingClassifier,
  step, predict, schedule, name, y, scale, above,
):  # fmt: skip
  """The step and the prediction with a classifier's guidance.

  It shifts the mean of ancestral sampling; other samplers get a guided score,
  whose x0_hat is not clipped again (see ``dj.classifier_guidance``).
  """
  apply: Any = functools.partial(
    classifier.net.apply, {"params": classifier.params}
  )
  gradient = dj.guidance.log_prob_gradient(apply, y)
  if name == "ancestral":
    step = functools.partial(
      dj.guidance.classifier_step, gradient=gradient, scale=scale, above=above
    )
    return step, predict
  return step, dj.guidance.classifier(predict, schedule, gradient, scale)
