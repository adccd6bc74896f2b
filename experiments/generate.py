"""Samples from a network, compiled once, with something to watch meanwhile."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from experiments import assemble


class Judge(NamedTuple):
  """A classifier to guide with.

  Attributes:
    name: Of its run.
    net: Its network.
    params: Its parameters.
  """

  name: str
  net: dj.models.Classifier
  params: Any


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
    sampler: A name in ``assemble.SAMPLERS``.
    pairs: The (t, s) to walk.
    batch: Images at a time.
    eta: Of the samplers that take it.
    classes: To draw.
    guidance: Scale of guidance, classifier-free unless there is a judge;
      None is without. May be set anew: no scale is compiled into a program.
    judge: The classifier to guide with.
    low_res: The small pictures to enlarge, [N, h, w, C], where the network
      enlarges; image k is made of ``low_res[k % N]``. May be set anew.
    low_res_noise: The step to noise these to, where the network has learnt
      from noisy ones.
  """

  def __init__(
    self,
    config,
    net: dj.UNet,
    image_shape: tuple[int, int, int],
    *,
    sampler: str,
    pairs: dj.timesteps.Pairs,
    batch: int,
    eta: float | None = None,
    classes: Sequence[int] = (),
    guidance: float | None = None,
    judge: Judge | None = None,
    low_res: np.ndarray | None = None,
    low_res_noise: int = 0,
  ):
    schedule = assemble.schedule(config)
    count = config.model.num_classes
    if judge is not None:
      count = judge.net.num_labels
    self._classes = np.array(classes or range(count or 0), np.int32)
    self._judge = None if judge is None else judge.params
    self.guidance = guidance
    pieces = max(n for n in range(1, 51) if len(pairs) % n == 0)
    self._pieces = np.split(pairs, pieces)
    self.batch = batch
    mesh = dj.parallel.data_mesh()
    rows = self._rows = -(-batch // mesh.size) * mesh.size
    split, whole = dj.parallel.split(mesh), dj.parallel.replicated(mesh)
    self._eta = eta
    self.low_res = low_res
    above = dj.timesteps.above_last(pairs)
    shape = tuple(image_shape)

    def walk(
      params, x, history, key, pairs, first, eta, y, scale, judged, small
    ):
      def of_class(x_t, t, y):
        told = {} if config.model.num_classes is None else {"y": y}
        copies = len(x_t) // rows  # guidance asks of each image twice
        for name, value in small.items():
          told[name] = jnp.concatenate([value] * copies)
        return net.apply({"params": params}, x_t, t, **told)

      params, judged = jax.lax.with_sharding_constraint((params, judged), whole)
      y, small = jax.lax.with_sharding_constraint((y, small), split)
      step = assemble.sampler(config, sampler, eta)
      denoise = functools.partial(of_class, y=y)
      if judge is not None:
        step, denoise = _judged(
          config, schedule, sampler, eta, denoise, judge.net, judged, y, scale,
          above,
        )  # fmt: skip
      elif scale is not None:
        denoise = dj.guidance.classifier_free(of_class, y, count, scale)
      x, kept = dj.sample(
        step,
        denoise,
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
      step = assemble.sampler(config, sampler)
      return dj.samplers.as_solver(step).init(x)

    def shrunk(key, images, low_res):
      if not net.noisy_low_res:
        return {"low_res": low_res}
      eps = dj.samplers.noise(
        jax.random.fold_in(key, assemble.LOW_RES),
        low_res_noise,
        images,
        low_res.shape[1:],
      )
      s = jnp.full(rows, low_res_noise)
      noisy = dj.q_sample(schedule, low_res, s, eps)
      return {"low_res": noisy, "low_res_t": s}

    self._walk = jax.jit(walk)
    self._shrunk = jax.jit(shrunk)
    self._remember = jax.jit(remember)
    self._noise = jax.jit(
      lambda key, images: dj.samplers.noise(key, pairs[0, 0], images, shape),
      out_shardings=split,
    )

  def walk(self, params, key: jax.Array, first: int) -> Iterator[jax.Array]:
    """One batch from image ``first`` on: x_T, then x after every piece."""
    images = first + np.arange(self._rows)
    x = self._noise(key, images)
    y = None
    if len(self._classes):
      y = self._classes[images % len(self._classes)]
    small = {}
    if self.low_res is not None:
      numbers = images % len(self.low_res)
      small = self._shrunk(key, images, self.low_res[numbers])
    history = self._remember(x)
    yield x
    for piece in self._pieces:
      x, history = self._walk(
        params, x, history, key, piece, first,
        self._eta, y, self.guidance, self._judge, small,
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


def _judged(config, schedule, name, eta, denoise, net, params, y, scale, above):
  """The step and the denoiser that a classifier guides.

  Ancestral sampling has its mean moved; all else is given a guided score,
  whose x0_hat is not clipped again (see ``dj.guidance``).
  """
  gradient = dj.guidance.log_prob_gradient(
    lambda x_t, t: net.apply({"params": params}, x_t, t), y
  )
  if name == "ancestral":
    step = functools.partial(
      dj.guidance.classifier_step,
      gradient=gradient,
      scale=scale,
      target=config.target,
      variance=config.variance,
      above=above,
    )
    return step, denoise
  guided = dj.guidance.classifier(
    denoise,
    schedule,
    gradient,
    scale,
    target=config.target,
    variance=config.variance,
  )
  return assemble.sampler(config, name, eta, target="eps", clip=False), guided
