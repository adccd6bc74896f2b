"""Conditions from data: vectors, in parts, each with its own dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax import conditions, data

SCHEDULE = dj.schedules.cosine(200)
# (x, a, b, b'): a part of one number and one of two.
MEAN = np.array([0.2, 10.0, -3.0, 0.5])
ROOT = np.array(
  [[0.8, 0, 0, 0], [2.0, 1.0, 0, 0], [-0.3, 0.2, 0.4, 0], [0.1, 0, 0.3, 0.2]]
)
COV = ROOT @ ROOT.T
PARTS = (
  conditions.Vector("a", (10.0,), (COV[1, 1] ** 0.5,), 0.3),
  conditions.Vector(
    "b", (-3.0, 0.5), (COV[2, 2] ** 0.5, COV[3, 3] ** 0.5), 0.1
  ),
)
CONDITIONS = conditions.Conditions(SCHEDULE, vectors=PARTS)
N = 4096


def regression(known, given):
  """Mean and variance of x given some of the others."""
  gain = np.linalg.solve(COV[np.ix_(known, known)], COV[known, 0])
  mean = MEAN[0] + gain @ (given - MEAN[known])
  return mean, COV[0, 0] - gain @ COV[known, 0]


def exact(x_t, t, cond):
  """E[x | x_t and what the vector does not hide], for each example."""
  at = SCHEDULE.at(t)
  row = cond["vector"]
  stds = np.array([s for part in PARTS for s in part.std])
  scaled = row[:, jnp.array([0, 2, 3])] * stds[None]
  known = row[:, jnp.array([1, 4, 4])]
  root = jnp.asarray(COV)

  def one(x, alpha, sigma, away, known):
    # What is hidden is as if seen through infinite noise.
    cov = root[1:, 1:] + jnp.diag(1e6 * (1 - known))
    gain = jnp.linalg.solve(cov, root[1:, 0])
    mean = MEAN[0] + gain @ (away * known)
    var = root[0, 0] - gain @ root[1:, 0]
    return mean + alpha * var / (alpha**2 * var + sigma**2) * (x - alpha * mean)

  x0 = jax.vmap(one)(x_t[:, 0], at.alpha, at.sigma, scaled, known)
  return x0[:, None]


PREDICT = dj.predictor(exact, SCHEDULE, target=dj.targets.x0)


@pytest.mark.parametrize(
  ("numbers", "known", "given"),
  [
    ({"a": [12.0], "b": [-2.5, 1.0]}, [1, 2, 3], [12.0, -2.5, 1.0]),
    ({"a": 12.0}, [1], [12.0]),
    ({"b": [-2.5, 1.0]}, [2, 3], [-2.5, 1.0]),
    ({}, [], []),
  ],
)
def test_samples_given_a_vector_are_the_regression(numbers, known, given):
  cond = CONDITIONS.given(None, None, numbers, count=N)
  sample = jax.jit(
    lambda key: dj.sample(
      dj.ancestral_step, dj.given(PREDICT, cond), SCHEDULE, (N, 1), key
    )[0]
  )
  x = np.asarray(sample(jax.random.key(0)))
  mean, var = regression(known, np.array(given)) if known else (0.2, 0.64)
  assert abs(x.mean() - mean) < 5 * np.sqrt(var / N)
  # A walk of 200 steps has 1 % too little variance.
  assert abs(x.var() / var - 1) < 5 * np.sqrt(2 / N) + 0.01


def test_a_vector_is_standardised_and_says_what_it_knows():
  numbers = {"a": np.array([10.0, 12.0]), "b": MEAN[2:]}
  cond = CONDITIONS.given(None, None, numbers, count=2)
  std = COV[1, 1] ** 0.5
  want = [[0, 1, 0, 0, 1], [2 / std, 1, 0, 0, 1]]
  np.testing.assert_allclose(cond["vector"], want, atol=1e-6)
  hidden = CONDITIONS.given(None, None, {"a": 10.0}, count=2)["vector"]
  np.testing.assert_allclose(hidden, [[0, 1, 0, 0, 0]] * 2, atol=1e-6)


def batch(n):
  row = MEAN + np.random.default_rng(0).normal(size=(n, 4)) @ ROOT.T
  row = row.astype(np.float32)
  return {
    "image": row[:, :1],
    "label": np.zeros(n, int),
    "a": row[:, 1:2],
    "b": row[:, 2:],
  }


def test_each_part_is_hidden_at_its_own_rate():
  drawn = jax.jit(CONDITIONS.draw)(batch(N), jax.random.key(0), 3)["vector"]
  whole = CONDITIONS.of(batch(N)["image"], None, batch(N))["vector"]
  a, b = drawn[:, 1] == 0, drawn[:, 4] == 0
  for hidden, rate in ((a, 0.3), (b, 0.1), (a & b, 0.03)):
    assert abs(hidden.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / N)
  # Hidden whole, or untouched.
  np.testing.assert_array_equal(drawn[a][:, :2], 0)
  np.testing.assert_array_equal(drawn[b][:, 2:], 0)
  np.testing.assert_array_equal(drawn[~a][:, :2], whole[~a][:, :2])
  np.testing.assert_array_equal(drawn[~b][:, 2:], whole[~b][:, 2:])


def test_the_null_condition_hides_what_training_hides():
  parts = (PARTS[0], PARTS[1]._replace(dropout=0.0))
  made = conditions.Conditions(
    SCHEDULE, num_classes=3, label_dropout=0.1, vectors=parts
  )
  cond = made.of(batch(2)["image"], jnp.array([0, 1]), batch(2))
  null = made.null(cond)
  assert null["y"].tolist() == [3, 3]
  np.testing.assert_array_equal(null["vector"][:, :2], 0)
  np.testing.assert_array_equal(null["vector"][:, 2:], cond["vector"][:, 2:])
  always = conditions.Conditions(SCHEDULE, num_classes=3, vectors=PARTS)
  assert always.null(cond)["y"].tolist() == [0, 1]
  with pytest.raises(ValueError, match="'angel' is no part of .*: class, "):
    made.without(cond, ["class", "angel"])


def test_classes_are_drawn_as_before_where_vectors_are_added():
  plain = conditions.Conditions(SCHEDULE, num_classes=3, label_dropout=0.5)
  more = conditions.Conditions(
    SCHEDULE, num_classes=3, label_dropout=0.5, vectors=PARTS
  )
  of = {**batch(64), "label": jnp.zeros(64, int)}
  y = [c.draw(of, jax.random.key(1), 5)["y"] for c in (plain, more)]
  np.testing.assert_array_equal(*y)


@pytest.mark.parametrize("net", [
  dj.UNet(
    channels=4, multipliers=(1,), num_blocks=1, attention_levels=(), vector=5
  ),
  dj.models.DiT(patch=2, width=8, depth=1, heads=2, vector=5),
])  # fmt: skip
def test_a_network_reads_its_vector(net):
  x, t = jnp.ones((2, 4, 4, 1)), jnp.ones(2, int)
  cond = CONDITIONS.of(batch(2)["image"], None, batch(2))
  params = jax.eval_shape(net.init, jax.random.key(0), x, t, cond)
  # Not as they are at first, when the last layer is zeros.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  params = jax.tree.unflatten(
    tree,
    [
      0.3 * jax.random.normal(k, p.shape)
      for k, p in zip(keys, leaves, strict=True)
    ],
  )
  one, other = net.apply(params, x, t, cond)
  assert abs(one - other).max() > 1e-3
  with pytest.raises(ValueError, match="vector=5 was called with none"):
    net.apply(params, x, t)
  with pytest.raises(ValueError, match="called with one of 2 numbers"):
    net.apply(params, x, t, {"vector": jnp.zeros((2, 2))})


# ------------------------------------------------------------------- files


def source(n=3):
  images = np.zeros((n, 2, 2, 1), np.uint8)
  return data.sources.in_memory("zeros", images, np.zeros(n), ())


def test_numbers_of_files_follow_their_examples(tmp_path):
  (tmp_path / "a.csv").write_text("angle, dose\n1,2\n3,4.5\n-1e3,0\n")
  np.save(tmp_path / "place.npy", np.arange(6.0).reshape(3, 2))
  numbers = {
    **data.vectors.read(tmp_path / "a.csv"),
    **data.vectors.read(tmp_path / "place.npy"),
  }
  assert {k: v.shape[1] for k, v in numbers.items()} == {
    "angle": 1, "dose": 1, "place": 2,
  }  # fmt: skip
  plain = source()
  whole = data.vectors.attach(plain, numbers)
  assert whole.fingerprint != plain.fingerprint
  batch = data.batches(whole, batch_size=3, seed=0)[0]
  order = batch["place"][:, 0].astype(int) // 2
  np.testing.assert_array_equal(
    batch["angle"][:, 0], np.array([1, 3, -1e3], np.float32)[order]
  )
  _, held = data.hold_out(whole, 2)
  np.testing.assert_array_equal(held.vectors["dose"], [[4.5]])
  part = conditions.standardised(whole.vectors, {"dose": 0.5})[1]
  assert part.name == "dose"
  assert part.dropout == 0.5
  np.testing.assert_allclose(part.std, np.std([2, 4.5, 0]))


BAD = {
  "text": ("a\nx\n", "a of example 0 is 'x', no number"),
  "empty cell": ("a,b\n1,2\n3,\n", "b of example 1 is '', no number"),
  "nan": ("a\n1\nnan\n", "a of example 1 is no finite number"),
  "too few": (
    "a,b\n1,2\n2\n",
    "example 1 has 1 numbers, its first line 2 names",
  ),
  "no names": ("1,2\n3,4\n", "must give each column a name of its own"),
  "twice": ("a,a\n1,2\n", "must give each column a name of its own"),
  "names alone": ("a,b\n", "below its first line there are no numbers"),
  "empty": ("", "below its first line there are no numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_vectors_are_one_line(name, tmp_path):
  text, message = BAD[name]
  path = tmp_path / "a.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    data.vectors.read(path)
  assert "\n" not in str(error.value)


def test_lost_differences_are_warned_of(tmp_path):
  path = tmp_path / "a.csv"
  rows = [f"170000000{k},{k}\n" for k in range(9)]
  path.write_text("".join(["at,angle\n", *rows]))
  with pytest.warns(UserWarning, match="at has 9 different numbers, and 1"):
    data.vectors.read(path)


def test_vectors_that_do_not_fit_are_refused(tmp_path):
  attach = functools.partial(data.vectors.attach, source())
  with pytest.raises(ValueError, match="a has 2 rows, zeros 3 examples"):
    attach({"a": np.zeros((2, 1))})
  with pytest.raises(ValueError, match="cannot be named 'label'"):
    attach({"label": np.zeros((3, 1))})
  with pytest.raises(ValueError, match="cannot be named 'class'"):
    attach({"class": np.zeros((3, 1))})
  for wrong in (np.zeros(3), np.full((3, 1), np.nan)):
    with pytest.raises(ValueError, match=r"a is \[3.*must be finite numbers"):
      attach({"a": wrong})
  with pytest.raises(ValueError, match="no vectors in"):
    data.vectors.read(tmp_path / "a.txt")
  np.save(tmp_path / "a.npy", np.zeros((3, 0)))
  with pytest.raises(ValueError, match=r"float64 \[3, 0\], must be \[N, n\]"):
    data.vectors.read(tmp_path / "a.npy")
  with pytest.raises(ValueError, match="the same in all examples"):
    conditions.standardised({"a": np.ones((3, 1))})
  with pytest.raises(ValueError, match=r"dropout of 'b' is 0.1: must be"):
    conditions.standardised({"a": np.eye(3)}, {"b": 0.1})
  with pytest.raises(ValueError, match="the batch has no b"):
    CONDITIONS.draw(
      {k: v for k, v in batch(2).items() if k != "b"}, jax.random.key(0), 0
    )
  with pytest.raises(ValueError, match=r"b is \[3\]: must be \[4, 2\]"):
    CONDITIONS.given(None, None, {"b": [1, 2, 3]}, count=4)


MADE = (
  {"num_classes": 3},
  {"vectors": (conditions.Vector("a", (0.0,), (1.0,)),)},
)


@pytest.mark.parametrize(("made", "y", "numbers", "message"), [
  (MADE[0], None, None, "y=None: pass a class, 0..2, for each example"),
  (MADE[0], [1.5], None, "class y is float64; pass whole numbers, 0..2"),
  (MADE[0], ["cat"], None, "class y is <U3; pass whole numbers, 0..2"),
  (MADE[0], [1], {"a": 1.0}, "'a' is no part of the condition: it has none"),
  (MADE[1], None, {"b": 1.0}, "'b' is no part of the condition: a"),
  (MADE[1], None, {"a": [1.0]}, "pass count=N beside a"),
  (MADE[1], [0], {"a": [np.nan]}, "a has values that are NaN or infinite"),
])  # fmt: skip
def test_conditions_that_say_nothing_are_refused(made, y, numbers, message):
  made = conditions.Conditions(dj.schedules.cosine(10), **made)
  with pytest.raises(ValueError, match=message):
    made.given(y, None, numbers)


def test_small_pictures_that_do_not_fit_are_refused():
  made = conditions.Conditions(SCHEDULE, low_res=(2, 2))
  for refused, message in (
    (lambda: made.of(np.ones((1, 4, 4, 1), np.uint8), None), "image is uint8"),
    (lambda: made.given(None, np.ones((1, 2, 2, 1), int)), "low_res is int32"),
    (lambda: made.given(None, np.ones((1, 4, 4, 1))), "4 x 4, .* of 2 x 2"),
  ):
    with pytest.raises(ValueError, match=message):
      refused()


def test_labels_are_asked_for_where_a_model_has_classes():
  image, draw = {"image": jnp.ones((2, 3))}, jax.random.key(0)
  with pytest.raises(ValueError, match="label_dropout=0.1 .* num_classes=None"):
    conditions.Conditions(SCHEDULE, label_dropout=0.1, vectors=PARTS)
  with pytest.raises(ValueError, match="y=None: pass a class, 0..2"):
    conditions.Conditions(SCHEDULE, num_classes=3).draw(image, draw, 0)
  assert conditions.Conditions(SCHEDULE).draw(image, draw, 0) is None


@pytest.mark.parametrize("numbers", [[1.0, 2.0], [[1.0], [np.nan]]])
def test_numbers_that_have_no_mean_are_refused(numbers):
  with pytest.raises(ValueError, match=r"a is \[2.*must be \[N, n\], and all"):
    conditions.standardised({"a": np.array(numbers)})
