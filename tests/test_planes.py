"""Pictures and masks as conditions, and a scale for each condition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax import composition, conditions

SCHEDULE = dj.schedules.cosine(200)
# (x, mask, sketch) at every pixel alike, and pixels independent.
MEAN = np.array([0.2, -0.3, 0.1])
ROOT = np.array([[0.8, 0, 0], [0.4, 0.3, 0], [-0.3, 0.2, 0.4]])
COV = ROOT @ ROOT.T
PARTS = (
  conditions.Plane("mask", 1, 0.3), conditions.Plane("sketch", 1, 0.1),
)  # fmt: skip
CONDITIONS = conditions.Conditions(SCHEDULE, planes=PARTS)
N, SIZE = 2048, (2, 3)
MASK = np.linspace(-1, 1, 6).reshape(2, 3, 1).astype(np.float32)
SKETCH = np.array([[0.5, -0.5, 0], [1, 0, -1]], np.float32)[..., None]


def regression(known, given):
  """Mean [H, W] and variance of x given some of the others, at each pixel."""
  gain = np.linalg.solve(COV[np.ix_(known, known)], COV[known, 0])
  away = np.concatenate(given, axis=-1) - MEAN[known]
  return MEAN[0] + away @ gain, COV[0, 0] - gain @ COV[known, 0]


def each(array):
  """The same at every pixel of every example."""
  return jnp.asarray(array)[None, None, None]


def exact(x_t, t, cond):
  """E[x | x_t and the pictures that are not hidden], pixel by pixel."""
  at = jax.tree.map(lambda a: a[:, None, None], SCHEDULE.at(t))
  planes = cond["planes"]
  away, known = planes[..., ::2] - each(MEAN[1:]), planes[..., 1::2]
  # What is hidden is as if seen through infinite noise.
  noise = 1e6 * (1 - known)[..., None] * each(np.eye(2))
  cov = each(COV[1:, 1:]) + noise
  right = jnp.broadcast_to(each(COV[1:, :1]), (*cov.shape[:-1], 1))
  gain = jnp.linalg.solve(cov, right)[..., 0]
  mean = MEAN[0] + (gain * away * known).sum(axis=-1)
  var = COV[0, 0] - (gain * each(COV[1:, 0])).sum(axis=-1)
  blend = at.alpha * var / (at.alpha**2 * var + at.sigma**2)
  return (mean + blend * (x_t[..., 0] - at.alpha * mean))[..., None]


PREDICT = dj.predictor(exact, SCHEDULE, target=dj.targets.x0)
GIVEN = {"mask": MASK, "sketch": SKETCH}


def assert_regression(predict, numbers, known):
  cond = CONDITIONS.given(None, None, numbers, count=N, size=SIZE)
  sample = jax.jit(
    lambda key: dj.sample(
      dj.ancestral_step, dj.given(predict, cond), SCHEDULE, (N, *SIZE, 1), key
    )[0]
  )
  x = np.asarray(sample(jax.random.key(0)))[..., 0]
  mean, var = MEAN[0], COV[0, 0]
  if known:
    mean, var = regression(known, [[MASK, SKETCH][k - 1] for k in known])
  # Six pixels, and none beyond 5 standard errors.
  assert (abs(x.mean(axis=0) - mean) < 5 * np.sqrt(var / N)).all()
  # A walk of 200 steps has 1 % too little variance.
  spread = (x - mean).var() / var - 1
  assert abs(spread) < 5 * np.sqrt(2 / x.size) + 0.01


@pytest.mark.parametrize(
  "names,known",
  [
    (("mask", "sketch"), [1, 2]),
    (("mask",), [1]),
    (("sketch",), [2]),
    ((), []),
  ],
)
def test_samples_given_pictures_are_the_regression(names, known):
  assert_regression(PREDICT, {name: GIVEN[name] for name in names}, known)


@pytest.mark.parametrize(
  "scales,known",
  [
    ({"mask": 1.0, "sketch": 1.0}, [1, 2]),
    ({"sketch": 1.0, "mask": 0.0}, [2]),
    ({"mask": 0.0, "sketch": 0.0}, []),
    ({"mask": 0.0}, [2]),  # what is not named is known
  ],
)
def test_scales_of_1_and_0_are_what_is_known(scales, known):
  # The mask and the sketch depend on each other: a sum of independent parts
  # would have another mean.
  guided = composition.composed(PREDICT, SCHEDULE, CONDITIONS.without, scales)
  assert_regression(guided, GIVEN, known)


def test_composed_guidance_is_equation_3():
  x_t = jax.random.normal(jax.random.key(1), (4, *SIZE, 1))
  t = jnp.array([1, 50, 120, 200])

  def at(**numbers):
    cond = CONDITIONS.given(None, None, numbers, count=4, size=SIZE)
    return PREDICT(x_t, t, cond).output

  none, first, both = at(), at(mask=MASK), at(**GIVEN)
  guided = composition.composed(
    PREDICT, SCHEDULE, CONDITIONS.without, {"mask": 2.0, "sketch": 1.5}
  )
  cond = CONDITIONS.given(None, None, GIVEN, count=4)
  np.testing.assert_allclose(
    guided(x_t, t, cond).output,
    none + 2.0 * (first - none) + 1.5 * (both - first),
    atol=1e-5,
  )
  one = composition.composed(PREDICT, SCHEDULE, CONDITIONS.without, {"mask": 2})
  alone = dj.guidance.classifier_free(
    PREDICT, SCHEDULE, lambda c: CONDITIONS.without(c, ["mask"]), 2
  )
  np.testing.assert_allclose(
    one(x_t, t, cond).output, alone(x_t, t, cond).output, atol=1e-6
  )
  with pytest.raises(ValueError, match="no parts to guide"):
    composition.composed(PREDICT, SCHEDULE, CONDITIONS.without, {})


def batch(n):
  rng = np.random.default_rng(0)
  planes = rng.normal(size=(n, *SIZE, 3)).astype(np.float32)
  names = ("image", "mask", "sketch")
  parts = {name: planes[..., k : k + 1] for k, name in enumerate(names)}
  return {**parts, "label": np.zeros(n, int)}


def test_each_picture_is_hidden_at_its_own_rate():
  n = 4096
  drawn = jax.jit(CONDITIONS.draw)(batch(n), jax.random.key(0), 3)["planes"]
  known = np.asarray(drawn[..., 1::2])
  assert (known == known[:, :1, :1]).all()  # of whole pictures
  mask, sketch = (known[:, 0, 0, k] == 0 for k in range(2))
  for hidden, rate in ((mask, 0.3), (sketch, 0.1), (mask & sketch, 0.03)):
    assert abs(hidden.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
  np.testing.assert_array_equal(drawn[mask][..., 0], 0)
  np.testing.assert_array_equal(
    drawn[~mask][..., 0], batch(n)["mask"][~mask][..., 0]
  )


def test_what_can_be_hidden_is_hidden_by_name():
  vectors = (conditions.Vector("angle", (0.0,), (1.0,), 0.5),)
  always = conditions.Plane("mask", 1)
  several = conditions.Conditions(
    SCHEDULE, num_classes=3, label_dropout=0.1, vectors=vectors,
    planes=(always, PARTS[1]),
  )  # fmt: skip
  assert several.hideable == ("class", "angle", "sketch")
  y = jnp.array([0, 1])
  cond = several.given(y, None, {"angle": [2.0], **GIVEN})
  hidden = several.without(cond, ["class", "sketch"])
  assert hidden["y"].tolist() == [3, 3]
  np.testing.assert_array_equal(hidden["vector"], cond["vector"])
  np.testing.assert_array_equal(
    hidden["planes"][..., :2], cond["planes"][..., :2]
  )
  assert not hidden["planes"][..., 2:].any()
  null = several.null(cond)
  assert not null["vector"].any()
  assert null["planes"][..., 1].all()


@pytest.mark.parametrize("make", [
  functools.partial(
    dj.UNet, channels=4, multipliers=(1,), num_blocks=1, attention_levels=()
  ),
  functools.partial(dj.models.DiT, patch=2, width=8, depth=1, heads=1),
])  # fmt: skip
def test_networks_read_pictures(make):
  net, size = make(), (4, 4)
  x, t = jnp.ones((2, *size, 1)), jnp.ones(2, int)
  cond = {"planes": jax.random.normal(jax.random.key(0), (2, *size, 4))}
  params = jax.eval_shape(net.init, jax.random.key(0), x, t, cond)
  # Not as they are at first, when the last layer is zeros.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  params = tree.unflatten(
    0.3 * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  )
  one, other = net.apply(params, x, t, cond)
  assert abs(one - other).max() > 1e-3


def test_pictures_that_do_not_fit_are_refused():
  given = functools.partial(CONDITIONS.given, None, None, count=2)
  with pytest.raises(ValueError, match="all of mask, sketch are hidden"):
    given({})
  with pytest.raises(
    ValueError, match=r"mask is \[2, 3, 2\]: must be \[2, 2, "
  ):
    given({"mask": np.ones((*SIZE, 2))})
  with pytest.raises(ValueError, match="mask is uint8; pass floats"):
    given({"mask": np.ones((*SIZE, 1), np.uint8)})
  with pytest.raises(ValueError, match="mask has values that are NaN"):
    given({"mask": np.full((*SIZE, 1), np.nan)})
  with pytest.raises(ValueError, match="the batch has no sketch"):
    CONDITIONS.draw(
      {k: v for k, v in batch(2).items() if k != "sketch"},
      jax.random.key(0), 0,
    )  # fmt: skip
