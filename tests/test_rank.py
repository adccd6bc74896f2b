"""Signals [B, L, C] and volumes [B, D, H, W, C], by the code of images."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import TWO_PEAKS
from PIL import Image

import diffusion_jax as dj
from diffusion_jax import (
  images,
  metrics,
  process,
  restoration,
  samplers,
  solvers,
)
from diffusion_jax.models import DiT, JiT, UNet, transformer
from diffusion_jax.models.edm2 import EDM2

TINY = {
  "channels": 4, "multipliers": (1, 2), "num_blocks": 1,
  "attention_levels": (1,),
}  # fmt: skip
NETWORKS = {
  "ddpm": UNet(**TINY, out_channels=2),
  "adm": UNet(
    **TINY, out_channels=2, resample="block", scale_shift=True,
    padding="symmetric",
  ),
  "edm2": EDM2(**TINY | {"channels": 8}, head_channels=8, out_channels=2),
}  # fmt: skip
SHAPES = ((12, 2), (3, 4, 2), (2, 3, 2, 2))


def filled(shapes, unit):
  """Values for all; where layers divide them by 1e-4 + their size, large."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    scale = 1000 if unit and len(leaf.shape) > 1 else 1
    return np.float32(scale * rng.normal(0.1, 0.3, leaf.shape))

  return jax.tree.map(draw, shapes)


def lifted(leaf, rank):
  """A signal's kernel as the middle one of a larger kernel of zeros."""
  if leaf.ndim < 3:
    return leaf
  kernel = np.zeros((*(3,) * (rank - 1), *leaf.shape), np.float32)
  kernel[(1,) * (rank - 1)] = leaf
  return kernel


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", NETWORKS)
def test_of_equal_rows_and_slices_each_is_the_network_of_signals(name):
  net, t = NETWORKS[name], jnp.array([1.0, 3.0])
  signal = jax.random.normal(jax.random.key(0), (2, 4, 1))
  shapes = jax.eval_shape(net.init, jax.random.key(1), signal, t)
  params = filled(shapes, unit=name == "edm2")
  call = jax.jit(net.apply)
  want = call(params, signal, t)
  assert np.std(want) > 0.01
  for size in ((2, 4), (2, 2, 4)):
    rank = len(size)
    x = jnp.broadcast_to(
      signal.reshape(2, *(1,) * (rank - 1), 4, 1), (2, *size, 1)
    )
    got = call(jax.tree.map(lambda a, r=rank: lifted(a, r), params), x, t)
    every = want.reshape(2, *(1,) * (rank - 1), 4, 2)
    assert got.shape == (2, *size, 2)
    np.testing.assert_allclose(
      got, np.broadcast_to(every, got.shape), atol=1e-4 * np.abs(want).max()
    )


@pytest.mark.parametrize("size", [(8,), (4, 2, 6)])
def test_transformers_take_any_rank_and_begin_at_zero(size):
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  for net in (DiT(2, 24, 1, 2), JiT(2, 24, 2, 2, bottleneck=4, class_start=1)):
    out, params = net.init_with_output(jax.random.key(1), x, jnp.ones(2))
    np.testing.assert_array_equal(out, 0 * x)
    kernel = params["params"]["out"]["kernel"]
    assert kernel.shape == (24, 2 ** len(size) * 3)


def test_patches_of_signals_and_volumes_come_back_to_the_bit():
  for size in ((8,), (4, 2, 6)):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    tokens = transformer.patchify(x, 2)
    cube = 2 ** len(size)
    assert tokens.shape == (2, math.prod(size) // cube, 3 * cube)
    np.testing.assert_array_equal(transformer.unpatchify(tokens, 2, size), x)
  # The second token is the next along the last axis.
  second = tokens[:, 1].reshape(2, 2, 2, 2, 3)
  np.testing.assert_array_equal(second, x[:, :2, :2, 2:4])


def test_axes_share_the_channels_of_positions():
  grid, head = (2, 3, 4), 16  # 8 pairs: 4 of depth, 2 of rows, 2 of columns
  by = transformer.turn(grid, head)
  q, k = jax.random.normal(jax.random.key(0), (2, head))
  every = (1, math.prod(grid), 1, head)
  q, k = (
    transformer.rotate(jnp.broadcast_to(x, every), by)[0, :, 0] for x in (q, k)
  )
  scores = np.asarray(q @ k.T).reshape(*grid, *grid)
  # They depend on offsets alone, and each axis counts.
  np.testing.assert_allclose(
    scores[0, 0, 0, 1, 1, 2], scores[0, 1, 1, 1, 2, 3], atol=2e-5
  )
  steps = [
    scores[0, 0, 0, 1, 0, 0],
    scores[0, 0, 0, 0, 1, 0],
    scores[0, 0, 0, 0, 0, 1],
  ]
  assert min(abs(np.diff([*steps, steps[0]]))) > 1e-3
  where = transformer.sin_cos(grid, 16).reshape(*grid, 16)
  for channels, same in (
    (slice(0, 4), (0, 1)),
    (slice(4, 8), (0, 2)),
    (slice(8, 16), (1, 2)),
  ):
    assert not np.ptp(where[..., channels], axis=same).any()


def test_one_axis_has_all_channels_of_positions():
  # Vaswani et al. 2017, section 3.5.
  angles = np.outer(np.arange(5), 10000.0 ** (-np.arange(4) / 4))
  want = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  np.testing.assert_allclose(transformer.sin_cos((5,), 8), want, atol=1e-6)


def test_sizes_that_do_not_fit_are_refused_in_one_line():
  for net, size, words in (
    (UNet(**TINY), (6, 4, 5), "6 x 4 x 5 must be multiples of 2"),
    (UNet(**TINY), (7,), "7 must be multiples of 2"),
    (EDM2(), (8, 8, 12), "the nearest is 8 x 8 x 8 or 8 x 8 x 16"),
    (DiT(2, 8, 1, 1), (4, 4, 3), "patches are of 2 x 2 x 2"),
    (DiT(2, 8, 1, 2, rope=True), (4, 4, 4), "one for each of the 3 axes"),
    (UNet(**TINY), (), r"must be \[B, L, C\]"),
  ):
    with pytest.raises(ValueError, match=words) as error:
      net.check_size(size)
    assert "\n" not in str(error.value)


# --------------------------------------------- schedules, steps, losses


SCHEDULE = dj.schedules.cosine(20)


def draws(shape):
  """All that can be done with the exact network of pixels, one number each."""
  predict, key = TWO_PEAKS.predictor(SCHEDULE), lambda: jax.random.key(0)
  x0 = TWO_PEAKS.sample(jax.random.key(1), (4, *shape))
  mask = (np.arange(math.prod(shape)) % 3 == 0).reshape(shape)
  guided = dj.guidance.classifier_free(
    lambda x, t, cond=None: predict(x, t), SCHEDULE, lambda c: c, 2.0
  )
  walk = dj.timesteps.spaced(20, 5)

  def sample(step, predict=predict):
    return dj.sample(step, predict, SCHEDULE, (4, *shape), key(), pairs=walk)[0]

  return {
    "ancestral": sample(dj.ancestral_step, dj.clipped(predict, SCHEDULE)),
    "ddim": sample(functools.partial(dj.ddim_step, eta=0.5)),
    "thresholded": sample(
      dj.ddim_step, dj.prediction.thresholded(predict, SCHEDULE)
    ),
    "heun": sample(solvers.heun_step),
    "dpm": sample(solvers.dpm(2)),
    "unipc": sample(solvers.unipc(2)),
    "guided": sample(dj.ddim_step, guided),
    "simple": dj.losses.simple(predict, SCHEDULE, x0, key()),
    "bound": dj.likelihood.variational_bound(
      dj.clipped(predict, SCHEDULE), SCHEDULE, x0, key(), pairs=walk
    ).total,
    "flow": dj.likelihood.probability_flow(
      predict, SCHEDULE, x0, key(), visited=[1, 5, 10, 20]
    ),
    "inpainted": dj.editing.inpaint(
      dj.ancestral_step, predict, SCHEDULE, x0, jnp.asarray(mask, float),
      key(), pairs=walk, jump=5, repeats=2,
    ),
    "restored": sample(
      dj.ddim_step,
      restoration.pigdm(
        predict, SCHEDULE, restoration.inpainting(mask),
        restoration.inpainting(mask)(x0), std=0.1,
      ),
    ),
  }  # fmt: skip


def test_all_is_the_same_whatever_axes_the_values_lie_along():
  image, signal, volume = (
    jax.tree.map(lambda x: np.ravel(x), jax.jit(draws, static_argnums=0)(s))
    for s in ((3, 4, 2), (24, 1), (2, 2, 3, 2))
  )
  for name, want in image.items():
    for got in (signal[name], volume[name]):
      np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(16, 1), (2, 4, 2, 1)])
def test_the_moments_of_a_gaussian_that_all_places_share(shape):
  # x_0 = a z + b e, z one number for each example, e one for each place.
  a, b, n, count = 0.8, 0.5, math.prod(shape), 4096
  axes = tuple(range(1, 1 + len(shape)))
  flow = dj.schedules.cosine(1000)

  def apply(x_t, t, *_):
    alpha, sigma = process.rates(flow, t, x_t)
    mean = x_t.mean(axis=axes, keepdims=True)
    eps = 0
    for part, var in ((mean, n * a**2 + b**2), (x_t - mean, b**2)):
      eps += sigma * part / (alpha**2 * var + sigma**2)
    return eps

  predict = dj.predictor(apply, flow)
  x, _ = jax.jit(
    lambda key: samplers.sample(
      solvers.dpm(2), predict, flow, (count, *shape), key,
      pairs=dj.spacing.named(flow, "log_snr", 60),
    )
  )(jax.random.key(0))  # fmt: skip
  x = np.asarray(x, float)
  means = x.mean(axis=axes)
  rest = x - x.mean(axis=axes, keepdims=True)
  for values, var in (
    (means, a**2 + b**2 / n), (rest.reshape(count, -1), b**2 * (1 - 1 / n)),
  ):  # fmt: skip
    independent = count if values.ndim == 1 else count * (n - 1)
    error = (2 / independent) ** 0.5 * var
    assert abs(np.mean(values**2) - var) < 4 * error + 0.005 * var
  assert abs(means.mean()) < 4 * means.std() / count**0.5


def test_small_pictures_are_means_of_boxes_of_any_rank():
  x = np.arange(16.0).reshape(1, 2, 4, 2, 1)  # 8 d + 2 h + w
  small = dj.upsampling.shrink(jnp.asarray(x), (1, 2, 1))
  np.testing.assert_allclose(np.ravel(small), [4 + 1 + 0.5, 4 + 5 + 0.5])
  with pytest.raises(ValueError, match="of 3 do not divide those of 8"):
    dj.upsampling.shrink(jnp.zeros((1, 8, 1)), (3,))


def test_filters_and_blurs_keep_what_is_constant():
  for shape in SHAPES:
    x = jnp.ones((2, *shape))
    found = metrics.random_features(x, jax.random.key(1), features=4)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(restoration.blurring(0.7)(x), x, rtol=1e-6)


# ------------------------------------------------------------------- data


def saved(tmp_path, shape, dtype="uint16"):
  rng = np.random.default_rng(0)
  array = rng.integers(0, 60000, shape).astype(dtype)
  np.save(tmp_path / "made.npy", array)
  return array, str(tmp_path / "made.npy")


@pytest.mark.parametrize(
  ("rank", "shape", "words"),
  [
    (1, (6, 8, 2), "6 signals of 8 x 2"),
    (1, (6, 8), "6 signals of 8 x 1"),
    (3, (6, 2, 4, 4, 1), "6 volumes of 2 x 4 x 4 x 1"),
    (3, (6, 2, 4, 4), "6 volumes of 2 x 4 x 4 x 1"),
    (2, (6, 8, 8), "6 images of 8 x 8 x 1"),  # grey pictures, as ever
  ],
)
def test_arrays_of_a_rank_come_back_in_their_own_units(
  tmp_path, rank, shape, words
):
  array, path = saved(tmp_path, shape)
  source = dj.data.load(path, rank=rank)
  assert words in dj.data.summary(source)
  batch = dj.data.batches(source, batch_size=6, seed=0)[0]["image"]
  assert batch.shape == (6, *source.image_shape)
  assert batch.dtype == np.float32
  back = source.values.restore(batch)
  assert back.dtype == np.uint16
  order = lambda x: x.reshape(6, -1)[np.argsort(x.reshape(6, -1)[:, 0])]
  np.testing.assert_array_equal(order(back), order(array))


@pytest.mark.parametrize(
  ("options", "shape", "words"),
  [
    ({}, (6, 8), r"rank=1 takes \[N, L, C\]"),
    ({}, (6, 2, 4, 4, 1), r"rank=3 takes \[N, D, H, W, C\]"),
    ({"rank": 1}, (6, 8, 8, 1), r"must be \[N, L, C\] or \[N, L\]"),
    ({"rank": 4}, (6, 8), "rank=4 of .*made.npy"),
    ({"rank": 1, "size": 8}, (6, 8), "leave them out"),
    ({"rank": 1}, (6, 2, 400), "moveaxis"),
  ],
)
def test_arrays_of_another_rank_are_refused(tmp_path, options, shape, words):
  _, path = saved(tmp_path, shape)
  with pytest.raises(ValueError, match=words) as error:
    dj.data.load(path, **options)
  assert "\n" not in str(error.value)


def tiff(path, pages):
  first, *others = map(Image.fromarray, pages)
  path.parent.mkdir(exist_ok=True)
  first.save(path, save_all=True, append_images=others)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_folder_of_multi_page_tiffs_is_volumes(tmp_path, dtype):
  volumes = np.random.default_rng(0).uniform(0, 200, (3, 2, 4, 6)).astype(dtype)
  for k, volume in enumerate(volumes):
    tiff(tmp_path / "scans" / f"{k}.tif", volume)
  options = {"rank": 3, "dtype": dtype, "range": (0, 200)}
  source = dj.data.load(tmp_path / "scans", **options)
  assert "3 volumes of 2 x 4 x 6 x 1" in dj.data.summary(source)
  lazy = dj.data.load(tmp_path / "scans", **options, max_bytes=0)
  dj.data.cache.begin(lazy, tmp_path / "cache")
  dj.data.cache.write(lazy, tmp_path / "cache")
  dj.data.cache.finish(tmp_path / "cache")
  cached = dj.data.load(tmp_path / "cache", rank=3)
  for one in (source, lazy, cached):
    got = one.gather(np.arange(3))["image"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got[..., 0], volumes)
  assert cached.fingerprint == source.fingerprint
  with pytest.raises(ValueError, match="as volumes: rank must be 3, and is 2"):
    dj.data.load(tmp_path / "cache")


@pytest.mark.parametrize(
  ("shapes", "rank", "words"),
  [
    ([[(4, 6), (4, 6)]], 2, "0.tif: it has 2 pages: .* with rank=3"),
    ([[(4, 6), (6, 4)]], 3, "0.tif: its page 2 is 6 x 4, its first 4 x 6"),
    (
      [[(4, 6)] * 2, [(4, 6)] * 3],
      3,
      r"0.tif is 2 x 4 x 6, 1.tif is 3 x 4 x 6 \(pages x height x width\)",
    ),
    ([[(4, 6)]], 3, "0.tif: it is no multi-page TIFF"),
    ([[(4, 6)] * 2], 1, "volumes .3. these or a folder or .zip of multi-page"),
  ],
)
def test_pages_that_are_no_volumes_are_refused(tmp_path, shapes, rank, words):
  for k, pages in enumerate(shapes):
    tiff(tmp_path / f"{k}.tif", [np.zeros(s, np.uint16) for s in pages])
  for options in ({}, {"max_bytes": 0}):
    with pytest.raises(ValueError, match=words) as error:
      dj.data.load(tmp_path, rank=rank, **options)
    assert "\n" not in str(error.value)


def test_no_pictures_lie_beside_signals(tmp_path):
  _, path = saved(tmp_path, (6, 8))
  np.save(tmp_path / "masks.npy", np.zeros((6, 8, 8, 1), np.uint8))
  with pytest.raises(ValueError, match="are signals: condition on numbers"):
    dj.data.beside.attach_named(
      dj.data.load(path, rank=1), {"mask": tmp_path / "masks.npy"}
    )


def test_mirrors_keep_channels_and_signals_have_none(tmp_path):
  array, path = saved(tmp_path, (4, 2, 2, 3, 2))
  source = dj.data.load(path, rank=3)
  many = dj.data.batches(source, batch_size=40, seed=0, flip=True)[0]["image"]
  seen = {x.tobytes() for x in source.values.restore(many)}
  assert seen == {
    np.ascontiguousarray(x).tobytes()
    for one in array
    for x in (one, one[..., ::-1, :])
  }
  _, path = saved(tmp_path, (4, 8))
  signals = dj.data.load(path, rank=1)
  with pytest.raises(ValueError, match="pass flip=False"):
    dj.data.batches(signals, batch_size=2, seed=0, flip=True)


def test_a_volume_is_shown_by_its_middle_slice_a_signal_by_lines():
  volumes = np.random.default_rng(0).uniform(-1, 1, (2, 5, 4, 4, 1))
  np.testing.assert_array_equal(
    images.grid(volumes), images.grid(volumes[:, 2])
  )
  ramp = np.linspace(0, 255, 33).astype(np.uint8)[None, :, None]
  drawn = images.plotted(ramp, (16, 32))[0]
  rows, columns = np.nonzero((drawn != 255).any(-1))
  np.testing.assert_allclose(rows, 15 - columns * 15 / 32, atol=1.01)
  # One value of 10,000 that differs is seen.
  spike = np.full((1, 10_000, 1), 128, np.uint8)
  spike[0, 7777] = 255
  assert (images.plotted(spike)[0, 0] != 255).any()
  # What leaves [-1, 1] is not cut off.
  wide = images.grid(np.array([-3.0, 3.0, 0.0])[None, :, None])
  assert (wide[4] != 255).any()
