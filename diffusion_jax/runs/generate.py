"""Samples from a compiled network, in pieces that can be watched."""

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

  A walk is cut into up to 50 equal pieces, one compiled program for all of
  them, so that there is progress to report and a film to show. Noise is keyed
  by image and step, and a solver's memory is handed on: neither pieces nor
  batches change a pixel. A batch is split over the devices, filled up to a
  multiple of them. Where classes are known, image k is of class
  ``classes[k % len(classes)]``, by default of each in turn.

  Args:
    config: Of the run.
    net: Its network.
    image_shape: (H, W, C).
    options: The sampler's name, the classes' numbers, eta, batch and
      low_res_noise, as a ``Plan`` has them; and the scale of guidance,
      classifier-free unless there is a classifier. None is without. Vectors
      that `cond` does not name are hidden, or at their mean where training
      never hides them.
    pairs: The (t, s) to walk.
    classifier: To guide with.
    low_res: The small pictures to enlarge, [N, h, w, C], where the network
      enlarges; image k is made of ``low_res[k % N]``.
    pictures: What else to draw given, [N, H, W, C] by name, likewise; others
      are hidden.

  Attributes:
    batch: Images at a time.
    guidance: May be set anew: no scale is compiled into a program.
    low_res: May be set anew.
    pictures: May be set anew, of the same names.
    guiding: The classifier's parameters, which may be set anew.
  """

  def __init__(
    self,
    config,
    net: dj.models.Backbone,
    image_shape: tuple[int, int, int],
    options: SamplingOptions,
    pairs: dj.timesteps.Pairs,
    *,
    classifier: GuidingClassifier | None = None,
    low_res: np.ndarray | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
  ):
    schedule = processes.schedule(config)
    sampler = options.sampler or config.sampling.sampler
    self._classes = np.array(
      guiding.classes_in_turn(config, options, classifier), np.int32
    )
    self.guiding = None if classifier is None else classifier.params
    self.guidance = guiding.numbers(options.guidance)
    pieces = max(n for n in range(1, 51) if len(pairs) % n == 0)
    self._pieces = np.split(pairs, pieces)
    self.batch = batch = options.batch
    mesh = dj.parallel.data_mesh()
    rows = self._rows = -(-batch // mesh.size) * mesh.size
    split, whole = dj.parallel.split(mesh), dj.parallel.replicated(mesh)
    self._eta = options.eta
    self.low_res = low_res
    self.pictures = {} if pictures is None else pictures
    above = dj.timesteps.above_last(pairs)
    shape = tuple(image_shape)
    make_step = functools.partial(
      samplers.sampler,
      sampler,
      num=len(pairs),
      churn=config.sampling.get("churn"),
    )

    conditions = networks.conditions(config, schedule, image_shape)

    means = {v.name: v.mean for v in conditions.vectors if not v.dropout}
    given = means | networks.numbers(config, options.cond)

    def walk(
      params, x, history, key, pairs, first, eta, y, scale, theirs, cond
    ):
      params, theirs = jax.lax.with_sharding_constraint((params, theirs), whole)
      y, cond = jax.lax.with_sharding_constraint((y, cond), split)
      step = make_step(eta)
      predict = processes.predictor(config, schedule, net, params)
      if classifier is None and scale is not None:
        predict = guiding.guided(
          config, predict, schedule, conditions, options.guidance, scale
        )
      if config.sampling.get("clip", True):
        predict = dj.clipped(predict, schedule)
      if classifier is not None:
        step, predict = _guided_by(
          classifier._replace(params=theirs),
          step, predict, schedule, sampler, y, scale, above,
        )  # fmt: skip
      x, kept = dj.sample(
        step,
        dj.given(predict, cond),
        schedule,
        (rows, *shape),
        key,
        pairs=pairs,
        x_T=x,
        first=first,
        history=history,
      )
      return x, kept.history

    def remember(x):
      solver = dj.samplers.as_solver(make_step())
      return solver.init(x, jnp.asarray(pairs[0, 0]))

    def conditioned(key, images, y, low_res, pictures):
      cond = conditions.given(
        y, low_res, given | pictures, count=rows, size=shape[:2]
      )
      if not conditions.noise:
        return cond
      return dj.conditions.noised(
        cond, schedule, key, options.low_res_noise, images
      )

    self._walk = jax.jit(walk)
    self._condition = jax.jit(conditioned)
    self._remember = jax.jit(remember)
    self._noise = jax.jit(
      lambda key, images: dj.samplers.prior(
        schedule, key, pairs[0, 0], images, shape
      ),
      out_shardings=split,
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
        self._eta, y, self.guidance, self.guiding, cond,
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
      params: Of the network.
      key: The root of all noise.
      num: How many images.
      progress: Called with the part of the work that is done, in (0, 1].

    Returns:
      [num, H, W, C].
    """
    batches = -(-num // self._rows)
    finished = []
    for b in range(batches):
      x = None
      for i, x in enumerate(self.walk(params, key, b * self._rows)):
        if progress is not None:
          x.block_until_ready()  # what is reported has happened
          progress((b + i / len(self._pieces)) / batches)
      finished.append(dj.parallel.fetch(x))
    return np.concatenate(finished)[:num]


def _guided_by(
  classifier: GuidingClassifier,
  step, predict, schedule, name, y, scale, above,
):  # fmt: skip
  """The step and the prediction that a classifier guides.

  Ancestral sampling has its mean moved; all else is given a guided score,
  whose x0_hat is not clipped again (see ``dj.guidance``).
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
