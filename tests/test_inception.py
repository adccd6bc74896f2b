import io
import zlib

import chex
import jax
import numpy as np
import pytest
import reference

from diffusion_jax import metrics, pretrained
from diffusion_jax.metrics import inception, inception_weights


def by_rule(name, shape):
  """The weights of the reference, from their names."""
  n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
  if name.endswith("running_var"):
    n = np.exp(0.1 * n)
  elif name.endswith(("running_mean", "bias")):
    n = 0.1 * n
  elif len(shape) == 1:
    n = 1 + 0.1 * n
  else:
    n *= np.sqrt(2 / np.prod(shape[1:]))
  return n.astype(np.float32)


@pytest.fixture(scope="module")
def state():
  return {k: by_rule(k, s) for k, s in inception_weights.shapes().items()}


@pytest.fixture(scope="module")
def params(state):
  return inception_weights.from_published(state)


@pytest.mark.parametrize(
  "suffix", ["_64x48", pytest.param("", marks=pytest.mark.slow)]
)
def test_agrees_with_the_published_network(params, suffix):
  want = reference.load("inception")
  names = ("64", "192", "768", "2048", "logits")
  network = inception.features(params, names)
  (got,) = metrics.extract(network, [want[f"images{suffix}"]], batch_size=3)
  for name in names:
    theirs = name.replace("logits", "logits_unbiased")
    expected = want[f"features_{theirs}{suffix}"]
    np.testing.assert_allclose(
      got[name], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )


def test_spatial_features_have_places(params):
  network = inception.features(params, ["spatial"])
  images = jax.ShapeDtypeStruct((2, 40, 30, 1), np.uint8)
  (found,) = jax.eval_shape(network, images).values()
  assert found.shape == (2, 17 * 17 * 7)


def test_resize_reads_between_the_pixels_where_tensorflow_1_does():
  # 4 to 6: row i is read at 4 i / 6; beyond the last there is nothing to mix.
  x = np.array([0.0, 3, 6, 9]).reshape(1, 4, 1, 1)
  rows = inception.resize(x, 6)[0, :, 0, 0]
  np.testing.assert_allclose(rows, [0, 2, 4, 6, 8, 9], rtol=1e-6)
  # Shrunk pictures are not smoothed.
  rows = inception.resize(np.arange(8.0).reshape(1, 8, 1, 1), 4)[0, :, 0, 0]
  np.testing.assert_allclose(rows, [0, 2, 4, 6], rtol=1e-6)


def test_grey_pictures_are_seen_as_colour_and_others_refused():
  grey = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 1), np.uint8)
  np.testing.assert_array_equal(
    inception.prepare(grey), inception.prepare(np.repeat(grey, 3, -1))
  )
  with pytest.raises(ValueError, match="channels=2"):
    inception.prepare(np.zeros((1, 8, 8, 2), np.uint8))
  with pytest.raises(ValueError, match="'pool' is not one of 64, 192"):
    inception.features({}, ["pool"])


def test_weights_are_found_in_a_file_or_a_folder(state, params, tmp_path):
  path = tmp_path / "pt_inception-2015-12-05-6726825d.safetensors"
  counts = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros(1, np.int64)}
  pretrained.write(path, state | counts)
  for source in (path, tmp_path):
    got = inception_weights.load(source)
    chex.assert_trees_all_equal(got, params)
  missing = tmp_path / "no"
  for source in (missing, missing / "inception.pth"):
    with pytest.raises(ValueError, match="download https://github.com/.*name"):
      inception_weights.find(source)


def test_a_download_is_checked_by_its_name(tmp_path, monkeypatch):
  monkeypatch.setattr(
    inception_weights.urllib.request,
    "urlopen",
    lambda *_, **__: io.BytesIO(b"an error page"),
  )
  with pytest.raises(ValueError, match="damaged file"):
    inception_weights.find(tmp_path, download=True)
  assert not list(tmp_path.iterdir())

  def offline(*_, **__):
    raise OSError("no network")

  monkeypatch.setattr(inception_weights.urllib.request, "urlopen", offline)
  with pytest.raises(ValueError, match=r"cannot be fetched \(no network\)"):
    inception_weights.find(tmp_path, download=True)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("fc.weight"), "lacks fc.weight"),
    (lambda s: s.update(extra=np.zeros(1)), "also has extra"),
    (
      # torchvision's network has 1000 classes.
      lambda s: s.update({"fc.bias": np.zeros(1000)}),
      r"fc.bias is \(1000,\), not \(1008,\)",
    ),
  ],
)
def test_other_weights_are_refused(state, change, message):
  other = dict(state)
  change(other)
  with pytest.raises(ValueError, match=message):
    inception_weights.from_published(other)
