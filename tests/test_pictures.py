"""The same pictures as ever: walks of closed forms, kept in tests/data."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import diffusion_jax as dj
from diffusion_jax import process, solvers

SAMPLERS = {
  "ancestral": dj.ancestral_step,
  "ddim": dj.ddim_step,
  "ddim eta=0.5": functools.partial(dj.ddim_step, eta=0.5),
  "heun": solvers.heun_step,
  "dpmpp_2m": solvers.dpm(2),
  "dpmpp_2m eta=1": solvers.dpm(2, eta=1.0),
  "dpmpp_3m": solvers.dpm(3),
  "unipc": solvers.unipc(),
  "deis": solvers.deis(),
}
TARGETS = ("eps", "x0", "mean", "v")
# Only the ancestral step reads the variance: the others take one.
CASES = [
  case
  for case in itertools.product(
    SAMPLERS, TARGETS, dj.prediction.VARIANCES, ("clip", "free")
  )
  if case[0] == "ancestral" or case[2:] == ("learned_range", "clip")
]
SHAPE = (2, 3, 2, 1)
SCHEDULE = dj.schedules.cosine(1000)
PAIRS = dj.timesteps.spaced(1000, 6)


COEFS = [float(c) for c in reference.load("process")["coefs"]]


def walk(name, target, variance, clip):
  predict = reference.predict(COEFS, SCHEDULE, target=target, variance=variance)
  if clip == "clip":
    predict = dj.clipped(predict, SCHEDULE)
  return dj.sample(
    SAMPLERS[name], predict, SCHEDULE, SHAPE, jax.random.key(7), pairs=PAIRS
  )[0]


def guided(scale):
  """By class, in which the network is told of a constant."""
  net = reference.model(COEFS)

  def apply(x_t, t, cond):
    return net(x_t, t) + 0.1 * process.per_example(cond["y"], x_t)

  predict = dj.guidance.classifier_free(
    dj.predictor(apply, SCHEDULE), SCHEDULE, dj.conditions.without_class(2),
    scale,
  )  # fmt: skip
  return dj.sample(
    functools.partial(dj.ddim_step, eta=1.0),
    dj.given(dj.clipped(predict, SCHEDULE), {"y": jnp.arange(2)}),
    SCHEDULE, SHAPE, jax.random.key(8), pairs=PAIRS,
  )[0]  # fmt: skip


def edited(kind):
  x0 = jnp.linspace(-1, 1, 12).reshape(SHAPE)
  net = dj.clipped(reference.predict(COEFS, SCHEDULE), SCHEDULE)
  step = dj.ancestral_step
  if kind == "inpaint":
    mask = jnp.arange(2.0).reshape(1, 1, 2, 1)
    mask = jnp.broadcast_to(mask, SHAPE)
    return dj.editing.inpaint(
      step, net, SCHEDULE, x0, mask, jax.random.key(9), pairs=PAIRS, jump=3,
      repeats=2,
    )  # fmt: skip
  if kind == "vary":
    return dj.editing.vary(
      step, net, SCHEDULE, x0, jax.random.key(9), start=600, pairs=PAIRS
    )
  return solvers.encode(net, SCHEDULE, x0, PAIRS)


OTHERS = {
  **{f"guided {scale}": functools.partial(guided, scale) for scale in (0.5, 3)},
  **{
    kind: functools.partial(edited, kind)
    for kind in ("inpaint", "vary", "encode")
  },
}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_walks_end_in_the_same_pictures(case):
  want = reference.load("pictures")["-".join(case)]
  # Of a mean that is not clipped values grow to 1e8: rounding is of these.
  atol = 1e-5 * max(1, abs(want).max())
  np.testing.assert_allclose(walk(*case), want, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", OTHERS)
def test_guided_and_edited_pictures_are_the_same(name):
  want = reference.load("pictures")[name]
  np.testing.assert_allclose(OTHERS[name](), want, rtol=1e-5, atol=1e-5)
