import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusion_jax as dj
from diffusion_jax import state as state_lib
from diffusion_jax.clipping import clip_by_global_norm, global_norm
from diffusion_jax.training import optimizer, quartiles, train_step

SCHEDULE = dj.schedules.cosine(40)


def apply(params, x_t, t, cond, dropout_key):
  """A linear 'network' whose gradients are easy to follow."""
  del dropout_key
  scale = params["scale"] + params["time"] * (t / 40)
  out = scale.reshape(-1, 1, 1, 1) * x_t
  if cond is None:
    return out
  return out + params["class"][cond["y"]].reshape(-1, 1, 1, 1)


TOLD = dj.conditions.Conditions(SCHEDULE, num_classes=3).draw
SGD = optax.sgd(0.1)


def make(tx=None, rates=(0.9, 0.99)):
  params = {
    "scale": jnp.float32(0.1),
    "time": jnp.float32(-0.2),
    "class": jnp.zeros(3),
  }
  tx = tx or SGD
  batch = {
    "image": jax.random.normal(jax.random.key(0), (16, 4, 4, 1)),
    "label": jnp.arange(16) % 3,
  }
  return state_lib.create(params, tx, rates), batch, tx


@functools.partial(
  jax.jit, static_argnames=("tx", "condition", "micro_batches", "ema_warmup")
)
def step(state, batch, tx, condition=TOLD, **options):
  return train_step(
    state,
    batch,
    jax.random.key(7),
    objective=dj.objectives.diffusion(apply, SCHEDULE, condition=condition),
    tx=tx,
    **options,
  )


def test_a_step_is_algorithm_1():
  # One SGD step on the simple loss at the t and eps the step drew.
  state, batch, tx = make()
  key_t, key_eps, _ = jax.random.split(
    jax.random.fold_in(jax.random.key(7), 0), 3
  )
  t = jax.random.randint(key_t, (16,), 1, 41)
  eps = jax.random.normal(key_eps, (16, 4, 4, 1))

  def loss(params):
    alpha, sigma = SCHEDULE.alpha[t], SCHEDULE.sigma[t]
    x_t = (
      alpha.reshape(-1, 1, 1, 1) * batch["image"]
      + sigma.reshape(-1, 1, 1, 1) * eps
    )
    cond = {"y": batch["label"]}
    return ((apply(params, x_t, t, cond, None) - eps) ** 2).mean()

  want, grads = jax.jit(jax.value_and_grad(loss))(state.params)
  params = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
  new, metrics = step(state, batch, tx)
  chex.assert_trees_all_close(new.params, params, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(metrics.loss, want, rtol=1e-5)
  np.testing.assert_allclose(
    metrics.grad_norm, optax.tree.norm(grads), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics.param_norm, optax.tree.norm(params), rtol=1e-5
  )
  assert new.step == 1


@pytest.mark.parametrize("micro_batches", [2, 4, 16])
def test_micro_batches_give_the_same_step(micro_batches):
  state, batch, tx = make()
  whole, one = step(state, batch, tx)
  cut, many = step(state, batch, tx, micro_batches=micro_batches)
  chex.assert_trees_all_close(cut, whole, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_close(many, one, rtol=1e-5, atol=1e-7)


def test_micro_batches_that_do_not_divide_a_batch_are_refused():
  state, batch, tx = make()
  with pytest.raises(ValueError, match="micro_batches=3 must divide the batch"):
    step(state, batch, tx, micro_batches=3)
  for none in (0, -2):
    with pytest.raises(ValueError, match=f"micro_batches={none} must divide"):
      step(state, batch, tx, micro_batches=none)


def test_every_step_draws_anew_and_the_same_step_the_same():
  state, batch, tx = make(optax.sgd(0.0))
  first, a = step(state, batch, tx)
  _, again = step(state, batch, tx)
  _, b = step(first, batch, tx)
  chex.assert_trees_all_equal(a, again)
  assert a.loss != b.loss


def test_every_step_has_a_dropout_of_its_own():
  state, batch, tx = make()
  objective = dj.objectives.diffusion(apply, SCHEDULE, condition=TOLD)
  objective = objective._replace(
    loss=lambda params, examples, key: (
      params["scale"] * jax.random.uniform(key, (len(examples.x0),))
    )
  )

  @jax.jit
  def loss_at(number):
    return train_step(
      state.replace(step=number), batch, jax.random.key(7),
      objective=objective, tx=tx,
    )[1].loss  # fmt: skip

  first, second, again = (float(loss_at(number)) for number in (0, 1, 1))
  assert first != second == again


def test_loss_by_quarter_of_t_adds_up():
  state, batch, tx = make()
  _, metrics = step(state, batch, tx)
  chex.assert_shape([metrics.quartile_loss, metrics.quartile_count], (4,))
  assert metrics.quartile_count.sum() == 16
  np.testing.assert_allclose(
    metrics.quartile_loss.sum() / 16, metrics.loss, rtol=1e-5
  )
  named = quartiles(np.array([2.0, 0, 3, 1]), np.array([4.0, 0, 3, 2]))
  assert named == {"loss_q0": 0.5, "loss_q2": 1.0, "loss_q3": 0.5}


def test_quarters_of_t_are_equal():
  # t = 1..T, four at a time.
  for T in (4, 40, 1000):
    quarter = (np.arange(1, T + 1) - 1) * 4 // T
    np.testing.assert_array_equal(np.bincount(quarter), [T // 4] * 4)


def test_training_lowers_the_loss():
  state, batch, tx = make(optax.adam(0.05))
  run = jax.jit(functools.partial(step, tx=tx))
  losses = []
  for _ in range(200):
    state, metrics = run(state, batch)
    losses.append(float(metrics.loss))
  # x_t = sigma eps + ...: the best scale at each t is known to be near
  # sigma_t, and knowing nothing costs 1.
  assert np.mean(losses[-50:]) < 0.6


def test_ema_follows_its_recursion():
  state, batch, tx = make()
  averages = dict.fromkeys(("0.9", "0.99"), float(state.params["scale"]))
  for _ in range(5):
    state, _ = step(state, batch, tx)
    for rate in averages:
      decay = float(rate)
      averages[rate] *= decay
      averages[rate] += (1 - decay) * float(state.params["scale"])
  for rate, want in averages.items():
    np.testing.assert_allclose(state.ema[rate]["scale"], want, rtol=1e-5)


def test_ema_starts_at_the_parameters_and_warms_up():
  state, batch, tx = make(rates=(0.9999,))
  chex.assert_trees_all_equal(state.ema["0.9999"], state.params)
  new, _ = step(state, batch, tx, ema_warmup=True)
  # At step 0 the rate is 1/10.
  want = jax.tree.map(
    lambda old, p: 0.1 * old + 0.9 * p, state.params, new.params
  )
  chex.assert_trees_all_close(new.ema["0.9999"], want, rtol=1e-5)


def test_learning_rate_warms_up_from_zero_and_decays_to_zero():
  def updates(**options):
    tx = optimizer(lr=1.0, **options)
    params, sizes = {"x": jnp.zeros(())}, []
    state = tx.init(params)
    for _ in range(9):
      # A constant gradient: Adam moves by the learning rate.
      update, state = tx.update({"x": jnp.ones(())}, state, params)
      sizes.append(-float(update["x"]))
    return sizes

  ramp = np.minimum(np.arange(9) / 4, 1)
  np.testing.assert_allclose(updates(warmup_steps=4), ramp, rtol=1e-4)
  np.testing.assert_allclose(updates(), np.ones(9), rtol=1e-4)
  cosine = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8))
  np.testing.assert_allclose(
    updates(warmup_steps=4, decay_steps=8), ramp * cosine, atol=1e-4
  )
  line = 1 - np.arange(9) / 8
  np.testing.assert_allclose(
    updates(decay_steps=8, decay="linear"), line, atol=1e-4
  )


def test_clipping_bounds_the_gradient():
  tx = optimizer(lr=1.0, clip=1.0)
  params = {"x": jnp.zeros(2)}
  state = tx.init(params)
  _, state = tx.update({"x": jnp.array([3.0, 4.0])}, state, params)
  # Adam's first moment is (1 - b1) times the clipped gradient.
  mu = optax.tree.get(state, "mu")["x"]
  np.testing.assert_allclose(mu, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


def network_like(rng):
  """Many arrays of few shapes, some of them on very different scales."""
  shapes = [(3, 3, 4, 8), (8,), (8, 16), ()] * 5
  scales = 10.0 ** rng.integers(-4, 4, len(shapes))
  return [
    jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
    for scale, shape in zip(scales, shapes, strict=True)
  ]


def test_the_global_norm_is_that_of_all_numbers():
  rng = np.random.default_rng(0)
  tree = {"a": network_like(rng), "b": tuple(network_like(rng))}
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  truth = np.sqrt((flat.astype(np.float64) ** 2).sum())
  np.testing.assert_allclose(global_norm(tree), truth, rtol=1e-6)


def test_the_global_norm_sums_once_for_each_shape():
  tree = network_like(np.random.default_rng(0))
  program = jax.make_jaxpr(global_norm)(tree).jaxpr
  names = [equation.primitive.name for equation in program.eqns]
  assert names.count("reduce_sum") == 4  # even of a scalar


@pytest.mark.parametrize("part", [0.1, 0.999, 1.001, 10.0, np.inf])
def test_clipping_is_optaxs(part):
  tree = network_like(np.random.default_rng(0))
  most = float(part * global_norm(tree))
  ours, state = clip_by_global_norm(most).update(tree, optax.EmptyState())
  theirs, _ = optax.clip_by_global_norm(most).update(tree, optax.EmptyState())
  assert state == optax.EmptyState()
  chex.assert_trees_all_close(ours, theirs, rtol=1e-6)
  if part > 1:
    chex.assert_trees_all_equal(ours, tree)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_clipping_hides_no_number_that_is_not_finite(wrong):
  tree = [jnp.ones(3), jnp.array([1.0, wrong])]
  clipped, _ = clip_by_global_norm(1.0).update(tree, optax.EmptyState())
  assert not np.isfinite(clipped[1]).all()


def test_clipping_leaves_a_gradient_of_zeros():
  tree = [jnp.zeros(3)]
  clipped, _ = clip_by_global_norm(1.0).update(tree, optax.EmptyState())
  chex.assert_trees_all_equal(clipped, tree)


@pytest.mark.parametrize("name", dj.optimizers.NAMES)
def test_a_state_can_be_donated(name):
  params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
  state = state_lib.create(
    params, optimizer(lr=0.1, name=name), (0.9,), teacher=params
  )
  step = jax.jit(
    lambda state: jax.tree.map(jnp.add, state, state), donate_argnums=0
  )
  assert step(state).teacher["bias"][0] == 2


def test_a_step_is_traced_once():
  state, batch, tx = make()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def run(state, batch):
    return step(state, batch, tx)

  for _ in range(3):
    state, _ = run(state, batch)


def test_unconditional_networks_are_told_nothing():
  state, batch, tx = make()
  new, _ = step(state, batch, tx, None, micro_batches=2)
  np.testing.assert_array_equal(new.params["class"], 0)


@pytest.mark.parametrize("rate", [1.0, -0.1, 2, "0.999"])
def test_bad_ema_rates_are_refused(rate):
  message = rf"EMA rate {rate!r} must be in \[0, 1\), a number, or a width"
  with pytest.raises(ValueError, match=message):
    make(rates=(rate,))
  with pytest.raises(ValueError, match="average 'stdx' must be a width as"):
    make(rates=("stdx",))


@pytest.mark.parametrize(("size", "micro"), [(7, 1), (12, 8), (0, 1)])
def test_batches_that_cannot_be_cut_are_refused(size, micro):
  mesh = dj.parallel.data_mesh(jax.devices() * 2)  # as on two devices
  with pytest.raises(ValueError, match=f"batch_size={size} must be a multip"):
    dj.parallel.check_batch(size, mesh, micro)


def test_checkpoints_give_back_every_bit(tmp_path):
  state, batch, tx = make(optimizer(lr=1e-3))
  state, _ = step(state, batch, tx)
  with dj.checkpoint.Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    assert checkpoints.latest_step() is None
    for _ in range(4):
      checkpoints.save(state)
      state, _ = step(state, batch, tx)
  like = jax.eval_shape(lambda: state)
  with dj.checkpoint.Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    assert checkpoints.latest_step() == 4
    saved = checkpoints.restore(like)
    again, _ = step(saved, batch, tx)
    chex.assert_trees_all_equal(again, state)
    other = like.replace(params={**like.params, "scale": like.params["class"]})
    with pytest.raises(
      ValueError, match=r"params/scale is \(\) in the checkpoint and \(3,\) in"
    ):
      checkpoints.restore(other)
  assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["3", "4"]
