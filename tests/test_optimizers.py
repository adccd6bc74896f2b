"""Optimizers by name, in closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusion_jax as dj
from diffusion_jax import optimizers


def test_rates_are_their_closed_forms():
  steps = jnp.array([0, 5, 10, 50, 80, 90, 100, 400])
  want = {
    "cosine": lambda n: 0.5 * (1 + np.cos(np.pi * min(n / 100, 1))),
    "linear": lambda n: 1 - min(n / 100, 1),
    "stable": lambda n: np.interp(n, [80, 100], [1, 0]),
    "inverse_sqrt": lambda n: 1 / np.sqrt(max(n / 100, 1)),
  }
  assert want.keys() == optimizers.DECAYS.keys()
  for name, left in want.items():
    at = optimizers.rate(0.2, warmup_steps=10, decay_steps=100, decay=name)
    np.testing.assert_allclose(
      at(steps), [0.2 * min(n / 10, 1) * left(n) for n in steps.tolist()],
      rtol=1e-5, atol=1e-7, err_msg=name,
    )  # fmt: skip
  constant = optimizers.rate(0.2, warmup_steps=10)
  np.testing.assert_allclose(constant(steps), [0, 0.1] + 6 * [0.2])


PARAMS = {
  "conv": {"kernel": jnp.zeros((3, 3, 4, 16)), "bias": jnp.zeros(16)},
  "dense": {"kernel": jnp.zeros((24, 8))},
  "classes": {"embedding": jnp.zeros((10, 8))},
}


def test_muon_orthogonalises_kernels_as_matrices():
  tx = dj.training.optimizer(lr=1.0, name="muon")
  grads = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(x.size), x.shape), PARAMS
  )
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  for name, shape in (("conv", (36, 16)), ("dense", (24, 8))):
    matrix = np.asarray(updates[name]["kernel"]).reshape(shape)
    # 0.2 sqrt(max(in, out)) times singular values in 0.68..1.14.
    values = np.linalg.svd(matrix)[1] / (0.2 * np.sqrt(shape[0]))
    assert values.min() > 0.6
    assert values.max() < 1.2
    # Adam's first updates have size lr; Muon's have that root mean square.
    assert 0.1 < np.sqrt((matrix**2).mean()) < 0.3
  for name, key in (("conv", "bias"), ("classes", "embedding")):
    first = np.abs(updates[name][key])
    np.testing.assert_allclose(first, first.ravel()[0], rtol=1e-4)


@pytest.mark.parametrize("name", optimizers.NAMES)
@pytest.mark.parametrize("clip", [None, 10.0])
def test_each_finds_the_least_square(name, clip):
  target = jax.random.normal(jax.random.key(0), (6, 4))
  params = {"kernel": jnp.zeros((6, 4))}
  tx = dj.training.optimizer(
    lr=0.05, name=name, clip=clip, warmup_steps=5,
    decay_steps=None if name == "schedule_free" else 300,
  )  # fmt: skip
  state = dj.state.create(params, tx, ())

  @jax.jit
  def step(state):
    grads = jax.grad(lambda p: ((p["kernel"] - target) ** 2).sum())(
      state.params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state)

  for _ in range(300):
    state = step(state)
  found = optimizers.evaluated(state)["kernel"]
  np.testing.assert_allclose(found, target, atol=0.1)


def test_schedule_free_draws_with_its_average():
  tx = dj.training.optimizer(lr=0.1, name="schedule_free", b1=0.9)
  state = dj.state.create({"w": jnp.zeros(3)}, tx, ())
  z, x, y = 0.0, 0.0, 0.0
  for n in range(1, 6):
    grads = {"w": jnp.ones(3)}
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(params=params, opt_state=opt_state)
    z -= 0.1  # Adam without momentum on a constant gradient: its sign.
    x += (z - x) / n
    y = 0.1 * z + 0.9 * x
    np.testing.assert_allclose(state.params["w"], y, rtol=1e-4)
    np.testing.assert_allclose(optimizers.evaluated(state)["w"], x, rtol=1e-4)


def test_names_and_numbers_are_checked():
  for options, message in (
    ({"name": "sgd"}, "optimizer='sgd' is not one of adam, muon"),
    ({"decay": "fast"}, "decay='fast' is not one of cosine"),
    ({"name": "schedule_free", "b1": 0.0}, "b1=0 must be above 0"),
    ({"lr": 0.0}, "lr=0.0 must be above 0"),
  ):
    with pytest.raises(ValueError, match=message):
      dj.training.optimizer(**{"lr": 0.1, **options})
  with pytest.raises(ValueError, match="decay='fast' is not one of cosine"):
    optimizers.rate(0.1, decay_steps=5, decay="fast")
