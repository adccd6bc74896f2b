"""Runs on data of one's own: 16 bits, floats, numbers to condition on."""

import json

import numpy as np
import pytest
from commands import BLIND, command, refused
from PIL import Image

import diffusion_jax as dj
from diffusion_jax import data
from diffusion_jax.runs import datasets
from experiments import evaluate, sample, train

RNG = np.random.default_rng(0)


@pytest.fixture
def files(tmp_path):
  """Arrays of two channels, 12 bits in 16; an angle and a mask of each."""
  images = RNG.integers(0, 4096, (20, 8, 8, 2), np.uint16)
  np.save(tmp_path / "a.npy", images)
  rows = "\n".join(f"{k / 20},{k % 3}" for k in range(20))
  (tmp_path / "a.csv").write_text(f"angle,dose\n{rows}\n")
  masks = RNG.integers(0, 2, (20, 8, 8), np.uint8) * np.uint8(255)
  np.save(tmp_path / "b.npy", masks)
  return (
    f"--config.data.name={tmp_path / 'a.npy'}",
    f"--config.data.cond={tmp_path / 'a.csv'},mask={tmp_path / 'b.npy'}",
    "--config.data.range=(0,4095)",
    f"--workdir={tmp_path / 'run'}",
  )


def test_samples_have_the_units_of_the_data(
  files, tmp_path, capsys, few_numbers
):
  dropout = "--config.cond_dropout=('angle=0.5','mask=0.5')"
  command(train, *BLIND, *files, dropout)
  run, out = tmp_path / "run", tmp_path / "a.npz"
  kept = json.loads((run / "data.json").read_text())
  values = data.values.from_json(kept["values"])
  assert values == data.values.of("uint16", (0, 4095))
  draw = (f"--workdir={run}", "--num=4", f"--out={out}", "--sampler=ddim")
  drawn = {}
  for asked in ("", "angle=0.3", "angle=0.9", "angle=0.9,dose=1"):
    command(sample, *draw, *([f"--cond={asked}"] if asked else []))
    drawn[asked] = np.load(out)["images"]
    assert drawn[asked].dtype == np.uint16
    assert drawn[asked].shape == (4, 8, 8, 2)
    assert 0 < drawn[asked].max() <= 4095
  assert (drawn[""] != drawn["angle=0.3"]).any()
  assert (drawn["angle=0.3"] != drawn["angle=0.9"]).any()
  # What is never hidden is at its mean, which here is 0.95.
  assert (drawn["angle=0.9"] != drawn["angle=0.9,dose=1"]).any()
  # In Python, with a mask, and with a scale for each.
  mask = tmp_path / "b.npy"
  opened = dj.runs.open(run)
  few = {"sampler": "ddim", "cond": {"angle": 0.9, "mask": mask}}
  both = opened.sample(4, **few)
  scaled = opened.sample(4, **few, guidance={"angle": 2, "mask": 1.5})
  assert (both != scaled).any()
  command(
    sample,
    *draw,
    f"--cond=angle=0.9,mask={mask}",
    "--guidance=angle=2,mask=1.5",
  )
  whole = np.load(out)["images"]
  np.testing.assert_array_equal(whole, values.restore(scaled))
  assert (whole != drawn["angle=0.9"]).any()
  for scale, missing in (("2", "angle"), ("mask=2", "mask")):
    # What training never hides is nothing to guide towards.
    given = (f"--guidance={scale}", "--cond=dose=1")
    line = refused(capsys, sample, *draw, *given)
    assert f"these are given no {missing}: pass --cond=" in line
  line = refused(capsys, sample, *draw, "--guidance=dose=2")
  assert "training hides angle, mask, and not dose" in line
  np.save(tmp_path / "two.npy", np.full((4, 8, 8, 2), 200, np.uint8))
  line = refused(capsys, sample, *draw, f"--cond=mask={tmp_path / 'two.npy'}")
  assert "has 2 channels, the run has learnt mask of 1" in line

  command(evaluate, f"--workdir={run}", "--metrics=bpd", "--num=2")
  row = json.loads((run / "evaluation.jsonl").read_text())
  assert row["levels"] == "4096, k / 2047.5 - 1"
  line = refused(capsys, evaluate, f"--workdir={run}", "--num=4")
  assert "only bpd is measured" in line
  for asked in ("angle=x", "angle=1:2", "place=1"):
    line = refused(capsys, sample, *draw, f"--cond={asked}")
    assert "angle (1 numbers), dose (1 numbers)" in line
  line = refused(capsys, sample, *draw, "--cond=angle=1,angle=2")
  assert "--cond names angle more than once" in line
  line = refused(capsys, sample, f"--workdir={run}", f"--out={tmp_path / 'b'}")
  assert "no PNGs" in line


TWELVE = data.values.of("uint16", (0, 4095))
UNITS = {
  # Of a run, of the pictures, the numbers they hold, what becomes of them.
  "12 bits": (TWELVE, "uint16", [0, 4095], [-1, 1]),
  "any precision": (
    data.values.of("float32", (0.1, 0.7)), "float64", [0.1, 0.4], [-1, 0],
  ),
  "no range": (
    data.values.of("float32", mean=3, std=2), "float32", [3, 5], [0, 1],
  ),
  "beside bytes": (data.values.BYTES, "uint16", [0, 2**16 - 1], [-1, 1]),
}  # fmt: skip
OTHER_UNITS = {
  "bytes": (TWELVE, "uint8", "data, uint16 0 to 4095, and are uint8"),
  "floats": (TWELVE, "float32", "data, uint16 0 to 4095, and are float32"),
  "floats beside bytes": (
    data.values.BYTES, "float32", "data, uint8 0 to 255, and are floats",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_pictures_beside_a_run_have_the_units_of_its_data(name, tmp_path):
  values, dtype, numbers, floats = UNITS[name]
  images = np.array(numbers, dtype).reshape(1, 1, 2, 1)
  np.save(tmp_path / "a.npy", np.broadcast_to(images, (2, 3, 2, 1)))
  source = datasets.in_units_of(values, "low_res", tmp_path / "a.npy")
  x = source.floats(np.arange(2))
  np.testing.assert_allclose(
    x, np.broadcast_to(np.reshape(floats, (1, 1, 2, 1)), x.shape), atol=1e-6
  )


def test_files_beside_a_run_are_decoded_to_its_dtype(tmp_path):
  Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / "a.png")
  source = datasets.in_units_of(TWELVE, "images", tmp_path)
  np.testing.assert_array_equal(source.floats(np.arange(1)), 1)


@pytest.mark.filterwarnings("ignore:.*no value exceeds")
@pytest.mark.parametrize("name", OTHER_UNITS)
def test_pictures_in_other_units_than_the_run_are_refused(name, tmp_path):
  values, dtype, message = OTHER_UNITS[name]
  np.save(tmp_path / "a.npy", np.zeros((2, 3, 3, 1), dtype))
  with pytest.raises(ValueError, match=rf"`images=.*a.npy` must .*{message}"):
    datasets.in_units_of(values, "images", tmp_path / "a.npy")


BAD = {
  "clip": (
    ["--config.data.range=()", "--config.data.mean=9", "--config.data.std=2"],
    "--config.sampling.clip=False",
  ),
  "range": (
    ["--config.data.range=(0,100)"],
    ', by --config.data.range="(low,high)"',
  ),
  "dropout": (
    ["--config.cond_dropout=(0.1,0.2)"],
    "each of angle, dose, mask",
  ),
  "rate": (["--config.cond_dropout=(1.5,)"], "must be in [0, 1)"),
  "name": (
    ["--config.cond_dropout=('face=0.1',)"],
    "each of angle, dose, mask",
  ),
  "moved": (
    ["--config.augment=0.1", "--config.model.augment_labels=9"],
    "moves pictures, but not what data.cond has",
  ),
  "cond": (["--config.data.cond=/nowhere.csv"], "no vectors in /nowhere.csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_line_before_training(name, files, capsys):
  flags, message = BAD[name]
  assert message in refused(capsys, train, *BLIND, *files, *flags)


def test_floats_have_no_levels_to_count(tmp_path, capsys):
  np.save(tmp_path / "a.npy", RNG.uniform(size=(20, 8, 8, 1)))
  line = refused(
    capsys, train, *BLIND,
    f"--config.data.name={tmp_path / 'a.npy'}", "--config.data.range=(0,1)",
    "--config.loss.name=vlb", "--config.variance=learned",
    f"--workdir={tmp_path / 'run'}",
  )  # fmt: skip
  assert "counts levels, and float64 0 to 1 has none" in line
