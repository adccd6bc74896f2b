import types

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.special
import scipy.stats

from diffusion_jax import metrics
from diffusion_jax.metrics import frechet_distance, moments
from diffusion_jax.metrics.frechet import _distance_of_rows


def draws(n, d, seed):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_agrees_with_the_matrix_square_root():
  a, b = draws(500, 8, 0), draws(400, 8, 1)
  cov_a, cov_b = np.cov(a.T), np.cov(b.T)
  root = scipy.linalg.sqrtm(cov_a @ cov_b).real
  gap = a.mean(0) - b.mean(0)
  want = gap @ gap + np.trace(cov_a + cov_b - 2 * root)
  np.testing.assert_allclose(frechet_distance(a, b), want, rtol=1e-9)


def test_is_a_distance():
  a, b = draws(300, 5, 0), draws(300, 5, 1)
  assert frechet_distance(a, a) < 1e-9
  np.testing.assert_allclose(
    frechet_distance(a, b), frechet_distance(b, a), rtol=1e-9
  )
  # A shift costs its square; nothing else changes.
  shift = np.array([1.0, -2, 0, 3, 0.5])
  np.testing.assert_allclose(
    frechet_distance(a, a + shift), shift @ shift, rtol=1e-9
  )


def test_dead_features_do_no_harm():
  a, b = draws(300, 5, 0), draws(300, 5, 1)
  dead = np.zeros((300, 3))
  np.testing.assert_allclose(
    frechet_distance(np.hstack([a, dead]), np.hstack([b, dead])),
    frechet_distance(a, b),
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ("a", "b", "message"),
  [
    (np.zeros((5, 3)), np.zeros((5, 2)), r"\(5, 3\) and \(5, 2\)"),
    (np.zeros((5, 3, 1)), np.zeros((5, 3, 1)), "pass \\(N, D\\)"),
    (np.zeros((1, 3)), np.zeros((5, 3)), "of 1 and 5"),
  ],
)
def test_bad_shapes_are_refused(a, b, message):
  with pytest.raises(ValueError, match=message):
    frechet_distance(a, b)


def test_streams_give_the_moments_of_the_whole():
  # A mean far from 0 costs the textbook sum of squares all its digits.
  x = draws(500, 6, 0) * 1e-3 + 1e5
  whole = moments.stream(np.split(x, [7, 8, 300]))
  assert whole.n == 500
  np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-14)
  np.testing.assert_allclose(whole.gaussian().cov, np.cov(x.T), rtol=1e-6)
  # In which order they are merged does not matter.
  a, b, c = map(moments.moments, np.split(draws(90, 6, 0), 3))
  left = moments.merge(moments.merge(a, b), c)
  right = moments.merge(c, moments.merge(b, a))
  np.testing.assert_allclose(left.scatter, right.scatter, rtol=1e-12)


def test_statistics_alone_give_the_distance():
  a, b = draws(300, 5, 0), draws(200, 5, 1)
  got = metrics.frechet(
    moments.stream(np.split(a, 3)).gaussian(), moments.moments(b).gaussian()
  )
  np.testing.assert_allclose(got, frechet_distance(a, b), rtol=1e-9)
  with pytest.raises(ValueError, match=r"shapes \(5,\) and \(4,\)"):
    metrics.frechet(
      moments.moments(a).gaussian(), moments.moments(b[:, :4]).gaussian()
    )


def test_few_vectors_are_refused():
  with pytest.raises(ValueError, match="of 1: a covariance needs"):
    moments.moments(np.zeros((1, 3))).gaussian()
  with pytest.raises(ValueError, match="at least one batch"):
    moments.stream([])
  with pytest.raises(ValueError, match=r"shape \(3,\)"):
    moments.moments(np.zeros(3))


def standard_gaussian(d):
  return metrics.Gaussian(np.zeros(d), np.eye(d))


def test_extrapolation_takes_the_bias_away():
  # n samples of the reference itself, N(0, I): to first order the mean costs
  # D / n and the covariance D (D + 1) / 4 n.
  d, n = 4, 1200
  biased, unbiased = [], []
  for seed, key in enumerate(jax.random.split(jax.random.key(0), 40)):
    x = np.random.default_rng(seed).normal(size=(n, d))
    biased.append(
      metrics.frechet(moments.moments(x).gaussian(), standard_gaussian(d))
    )
    unbiased.append(
      metrics.frechet_infinity(x, standard_gaussian(d), key, least=150)
    )
  error = np.std(biased, ddof=1) / np.sqrt(40)
  want = d * (d + 5) / (4 * n)
  assert abs(np.mean(biased) - want) < 4 * error + 0.02 * want
  assert np.mean(biased) > 8 * error
  error = np.std(unbiased, ddof=1) / np.sqrt(40)
  assert abs(np.mean(unbiased)) < 4 * error


def test_the_bootstrap_finds_the_spread_of_independent_draws():
  # Both standard deviations are of few values: sd(s) / s = 1 / sqrt(2 (m - 1)).
  d, n, m, sets = 5, 400, 40, 8
  stds = {"frechet": [], "infinity": []}
  values = {"frechet": [], "infinity": []}
  for seed in range(m):
    x = 1.5 * np.random.default_rng(seed).normal(size=(n, d)) + 0.3
    k_infinity, *keys = jax.random.split(jax.random.key(seed), 3)
    reference = standard_gaussian(d)
    fit = moments.moments(x).gaussian()
    values["frechet"].append(metrics.frechet(fit, reference))
    values["infinity"].append(
      metrics.frechet_infinity(x, reference, k_infinity, least=100, points=4)
    )
    if seed < sets:
      stds["frechet"].append(metrics.frechet_std(x, reference, keys[0]))
      stds["infinity"].append(
        metrics.frechet_infinity_std(x, reference, keys[1], least=100, points=4)
      )
  for name, replicates in (("frechet", 20), ("infinity", 10)):
    ratio = np.mean(stds[name]) / np.std(values[name], ddof=1)
    error = np.sqrt(1 / (2 * (m - 1)) + 1 / (2 * (replicates - 1) * sets))
    assert abs(ratio - 1) < 4 * error, name


@pytest.mark.parametrize("n", [4, 30])
def test_a_resampled_distance_is_that_of_the_rows_written_out(n):
  # Fewer rows than dimensions, and more.
  x, rows = draws(n, 9, 0), np.random.default_rng(1).integers(0, n, n)
  reference = moments.moments(draws(40, 9, 2)).gaussian()
  found = _distance_of_rows(x, reference)(rows)
  want = metrics.frechet(moments.moments(x[rows]).gaussian(), reference)
  # The root of an eigenvalue that is 0 but for rounding has half the digits.
  np.testing.assert_allclose(found, want, rtol=1e-6)


def test_a_bootstrap_needs_two_samples_of_the_references_length():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="a bootstrap of 1 samples"):
    metrics.frechet_std(np.zeros((1, 2)), standard_gaussian(2), key)
  with pytest.raises(ValueError, match="features of the same network"):
    metrics.frechet_std(np.zeros((9, 3)), standard_gaussian(2), key)


def test_extrapolation_needs_more_samples_than_its_smallest_part():
  with pytest.raises(ValueError, match="less than the 50 samples"):
    metrics.frechet_infinity(
      np.zeros((50, 2)), standard_gaussian(2), jax.random.key(0)
    )


def test_squared_mmd_agrees_with_its_definition():
  x, y = draws(12, 3, 0), draws(9, 3, 1)
  k = lambda a, b: (np.dot(a, b) / 3 + 1) ** 3
  within = lambda z: np.mean(
    [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
  )
  want = within(x) + within(y) - 2 * np.mean([[k(a, b) for b in y] for a in x])
  np.testing.assert_allclose(metrics.squared_mmd(x, y), want, rtol=1e-12)


def test_the_kernel_distance_is_unbiased_and_knows_its_error():
  # Of equal distributions its t statistics are t distributed about 0.
  t = []
  for seed, key in enumerate(jax.random.split(jax.random.key(0), 50)):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 600, 3))
    kid = metrics.kernel_distance(x, y, key, subset_size=30)
    assert (kid.subset_size, kid.subsets) == (30, 20)
    t.append(kid.distance / kid.standard_error)
  assert abs(np.mean(t)) < 4 / np.sqrt(50)
  assert scipy.stats.kstest(t, scipy.stats.t(19).cdf).pvalue > 1e-3
  # A shift is seen far beyond chance.
  kid = metrics.kernel_distance(x, y + 1, jax.random.key(1))
  assert kid.distance > 5 * kid.standard_error


def test_subsets_shrink_with_the_sets():
  x = draws(400, 3, 0)
  kid = metrics.kernel_distance(x, x, jax.random.key(0), subset_size=1000)
  assert (kid.subset_size, kid.subsets) == (40, 10)
  kid = metrics.kernel_distance(x, x, jax.random.key(0), subsets=3)
  assert kid.subsets == 3
  with pytest.raises(ValueError, match="subsets=1 must be at least 2"):
    metrics.kernel_distance(x, x, jax.random.key(0), subsets=1)
  with pytest.raises(ValueError, match="of 19 and 400"):
    metrics.kernel_distance(x[:19], x, jax.random.key(0))
  with pytest.raises(ValueError, match=r"\(1, 3\) and \(400, 3\)"):
    metrics.squared_mmd(x[:1], x)


def test_precision_and_recall_agree_with_trees():
  data, samples = draws(1500, 3, 0), draws(1100, 3, 0) * 1.1 + 0.2
  trees = [scipy.spatial.KDTree(z) for z in (data, samples)]
  radii = [
    tree.query(z, k=4)[0][:, 3]
    for tree, z in zip(trees, (data, samples), strict=True)
  ]
  inside = lambda x, z, r: (scipy.spatial.distance.cdist(x, z) <= r).any(1)
  got = metrics.precision_recall(data, samples)
  assert got.precision == inside(samples, data, radii[0]).mean()
  assert got.recall == inside(data, samples, radii[1]).mean()
  assert 0.05 < got.recall < got.precision < 1


def test_precision_and_recall_tell_quality_from_coverage():
  whole = np.arange(40.0)[:, None]
  left = whole[:20]
  assert metrics.precision_recall(whole, whole) == (1, 1)
  assert metrics.precision_recall(whole, whole + 100) == (0, 0)
  # Good pictures, of half of what there is. At 19 the ball reaches to 22.
  half = metrics.precision_recall(whole, left)
  assert half == (1, 23 / 40)
  # Everything there is, and as much again that is not.
  assert metrics.precision_recall(left, whole) == (23 / 40, 1)
  # Pairs of equal vectors, as small or grey pictures have: balls of radius 0.
  pairs = np.repeat(whole, 4, axis=0)
  assert metrics.precision_recall(pairs, pairs) == (1, 1)
  assert metrics.precision_recall(pairs, pairs + 0.5) == (0, 0)


def test_neighbours_and_shapes_are_checked():
  with pytest.raises(ValueError, match="k=3 .* 3 and 5 vectors"):
    metrics.precision_recall(np.zeros((3, 2)), np.zeros((5, 2)))
  with pytest.raises(ValueError, match=r"\(5, 2\) and \(5, 3\)"):
    metrics.precision_recall(np.zeros((5, 2)), np.zeros((5, 3)))


def test_the_inception_score_counts_classes():
  sure = np.tile(1000 * np.eye(7), (20, 1))
  np.testing.assert_allclose(metrics.inception_score(sure), (7, 0), atol=1e-12)
  unsure = np.full((100, 7), 3.0)
  np.testing.assert_allclose(
    metrics.inception_score(unsure), (1, 0), atol=1e-12
  )
  one_class = np.tile(1000 * np.eye(7)[:1], (50, 1))
  np.testing.assert_allclose(metrics.inception_score(one_class).score, 1)


def test_the_inception_score_agrees_with_its_definition():
  logits = draws(95, 6, 0)
  p = scipy.special.softmax(logits, axis=1)
  want = [
    np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part]))
    for part in (p[:47], p[47:])
  ]
  got = metrics.inception_score(logits, splits=2)
  np.testing.assert_allclose(got, (np.mean(want), np.std(want)), rtol=1e-9)
  # A constant added to an image's logits says nothing.
  shifted = metrics.inception_score(logits + draws(95, 1, 1), splits=2)
  np.testing.assert_allclose(shifted, got, rtol=1e-9)
  with pytest.raises(ValueError, match="splits=10"):
    metrics.inception_score(logits[:9])


@pytest.mark.parametrize("jit", [True, False])
def test_features_do_not_depend_on_batches(jit):
  images = np.random.default_rng(0).integers(0, 256, (11, 3, 2, 1), np.uint8)
  seen = set()

  def network(x):
    seen.add(x.shape)
    return {"row": metrics.pixels(x), "mean": x.mean(axis=(1, 2))}

  batches = [images[:4], images[4:8], images[8:]]
  found = list(metrics.extract(network, batches, batch_size=4, jit=jit))
  rows = np.concatenate([part["row"] for part in found])
  np.testing.assert_allclose(rows, images.reshape(11, 6) / 127.5 - 1, atol=1e-6)
  assert [part["mean"].shape for part in found] == [(4, 1), (4, 1), (3, 1)]
  # One program for all, or the pictures as they come.
  assert len(seen) == (1 if jit else 2)
  with pytest.raises(ValueError, match="a batch of 11 pictures"):
    next(metrics.extract(network, [images], batch_size=4, jit=jit))


def test_references_survive_the_round_trip(tmp_path):
  gaussians = {
    "2048": moments.moments(draws(30, 4, 0)).gaussian(),
    "spatial": moments.moments(draws(30, 3, 1)).gaussian(),
  }
  path = tmp_path / "reference.npz"
  metrics.write_reference(path, gaussians)
  assert set(np.load(path)) == {"mu", "sigma", "mu_s", "sigma_s"}
  found = metrics.read_reference(path)
  assert not found.has_images and len(found.fingerprint) == 16
  for name, gaussian in gaussians.items():
    np.testing.assert_array_equal(found.gaussians[name].cov, gaussian.cov)
  images = np.zeros((2, 4, 4, 3), np.uint8)
  np.savez(path, arr_0=images, mu=np.zeros(4), sigma=np.eye(4))
  other = metrics.read_reference(path)
  assert other.has_images and list(other.gaussians) == ["2048"]
  assert other.fingerprint != found.fingerprint


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"a": np.zeros(3)}, r"holds \['a'\]: a reference has arr_0"),
    ({"mu": np.zeros(3)}, "a reference has arr_0"),
    ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"\(3,\) and .* \(2, 2\)"),
    ({"mu": np.zeros(1), "sigma": np.full((1, 1), np.nan)}, "not finite"),
  ],
)
def test_files_that_are_no_reference_are_refused(tmp_path, arrays, message):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    metrics.read_reference(tmp_path / "a.npz")


def test_a_reference_has_the_name_it_is_given(tmp_path):
  gaussian = moments.Gaussian(np.zeros(2), np.eye(2))
  metrics.write_reference(tmp_path / "stats", {"2048": gaussian})
  assert [path.name for path in tmp_path.iterdir()] == ["stats"]
  assert list(metrics.read_reference(tmp_path / "stats").gaussians) == ["2048"]


def test_a_batch_is_no_larger_for_several_devices():
  four = types.SimpleNamespace(size=4)
  found = metrics.extract(
    lambda x: x, [np.zeros(2), np.zeros(3)], batch_size=2, mesh=four, jit=False
  )
  assert next(found).shape == (2,)
  with pytest.raises(
    ValueError, match="a batch of 3 pictures must have 1..batch_size=2"
  ):
    next(found)


def test_features_of_other_lengths_are_no_stream():
  with pytest.raises(ValueError, match="features of 3 numbers after some of 2"):
    moments.stream([np.zeros((2, 2)), np.zeros((2, 3))])


def test_features_without_a_place_in_a_file_are_refused(tmp_path):
  gaussian = moments.Gaussian(np.zeros(2), np.eye(2))
  with pytest.raises(ValueError, match="'pixels' is not one of 2048, spatial"):
    metrics.write_reference(tmp_path / "a.npz", {"pixels": gaussian})


def test_a_damaged_reference_is_refused(tmp_path):
  (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
  with pytest.raises(ValueError, match="damaged or no .npz"):
    metrics.read_reference(tmp_path / "a.npz")


@pytest.mark.parametrize(
  "measure",
  [
    metrics.frechet_distance,
    metrics.squared_mmd,
    metrics.precision_recall,
    lambda x, y: metrics.inception_score(x),
  ],
)
def test_features_that_are_not_finite_have_no_distance(measure):
  x = np.ones((20, 3))
  x[3, 1] = np.nan
  with pytest.raises(FloatingPointError, match="1 of 60 features are NaN"):
    measure(x, np.ones((20, 3)))


def test_floats_are_refused_as_pixels():
  # As bytes, all of [-1, 1] would be black: every distance close to 0.
  with pytest.raises(ValueError, match="images are float32; pass bytes"):
    metrics.pixels(np.zeros((2, 4, 4, 1), np.float32))
