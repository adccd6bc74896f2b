"""experiments.edit, run as a user runs it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from commands import BLIND, assert_one_error, command
from oracles import Mixture
from PIL import Image

import diffusion_jax as dj
from diffusion_jax.runs import directory, processes
from experiments import edit, train
from experiments.configs import common

# Nothing of it is clipped to [-1, 1].
NARROW = Mixture(means=(0.1,), weights=(1.0,), std=0.2)


@pytest.fixture
def trained(zoo, tmp_path, few_numbers):
  """A run that knows no classes, and one that always knows the class."""
  plain = zoo.copy("few", tmp_path / "plain")
  told = zoo.copy("conditional", tmp_path / "told")
  config = directory.read_json(told, "config")
  directory.replace(
    told / "config.json", json.dumps(config | {"label_dropout": 0})
  )
  return plain, told


def tiles(path, rows, columns):
  """The images of a grid whose pixels are enlarged 8 times."""
  with Image.open(path) as picture:
    array = np.asarray(picture)[..., 0]
  assert array.shape == (rows * 68 + 4, columns * 68 + 4)
  return np.array(
    [
      [array[4 + r * 68 :, 4 + c * 68 :][:64:8, :64:8] for c in range(columns)]
      for r in range(rows)
    ]
  )


def test_what_may_be_hidden_is(tmp_path, few_numbers):
  pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
  np.save(tmp_path / "a.npy", pictures)
  np.save(tmp_path / "angle.npy", np.arange(20.0))
  run, out = tmp_path / "run", tmp_path / "a.png"
  command(
    train, *BLIND, "--config.num_steps=4", f"--workdir={run}",
    f"--config.data.name={tmp_path / 'a.npy'}",
    f"--config.data.cond=mask={tmp_path / 'a.npy'},"
    f"angle={tmp_path / 'angle.npy'}",
    "--config.cond_dropout=('mask=0.2','angle=0.1')",
  )  # fmt: skip
  flags = ("--edit=inpaint", "--num=2", "--steps=10")
  command(edit, f"--workdir={run}", *flags, f"--out={out}")
  assert out.is_file()


@pytest.mark.parametrize(
  ("region", "kept"),
  [
    ("right", np.s_[:, :4]),
    ("left", np.s_[:, 4:]),
    ("top", np.s_[4:]),
    ("bottom", np.s_[:4]),
  ],
)
def test_inpainting_keeps_what_is_known(region, kept, trained, tmp_path):
  out = tmp_path / "a.png"
  flags = ("--edit=inpaint", f"--region={region}", "--num=3", "--steps=10")
  command(edit, f"--workdir={trained[0]}", *flags, f"--out={out}")
  data, known, *filled = tiles(out, 4, 3)
  source = dj.data.load("digits")
  np.testing.assert_array_equal(data[0], source[0]["image"][..., 0])
  for row in (known, *filled):
    for x, truth in zip(row, data, strict=True):
      np.testing.assert_array_equal(x[kept], truth[kept])
  assert (known == 128).sum() >= 3 * 32  # the rest is grey, then filled in
  assert (filled[0] != filled[1]).any()


@pytest.mark.parametrize("operator", edit.OPERATORS)
def test_what_is_restored_agrees_with_what_was_seen(operator):
  config = common.make(schedule={"name": "cosine"})
  schedule = processes.schedule(config)
  # Of data without a range nothing is clipped.
  bounded = operator != "downsample"
  of = NARROW if bounded else dataclasses.replace(NARROW, means=(5.0,))
  exact = of.predictor(schedule, dj.targets.x0)
  pairs = dj.timesteps.spaced(1000, 50)
  model = edit.Model(schedule, exact, pairs, bounded)
  x0 = of.sample(jax.random.key(0), (4, 8, 8, 1))
  asked = edit.Request(jax.random.key(1), "right", operator)
  data, seen, *restored = edit.restore(model, x0, asked)
  assert seen.shape == data.shape
  observe = edit.observation(operator, x0, "right")
  for x in restored:
    away = observe(x) - observe(x0)
    # That of y, twice: it is drawn, and so is x given y.
    assert np.sqrt(np.mean(away**2)) < 2 * np.sqrt(2) * edit.NOISE
  assert abs(restored[0] - restored[1]).max() > edit.NOISE


def test_a_restoration_is_a_picture(trained):
  flags = ("--edit=restore", "--operator=blur", "--num=3", "--steps=4")
  command(edit, f"--workdir={trained[0]}", *flags)
  tiles(trained[0] / "samples" / "restore.png", 4, 3)


def test_variations_keep_less_from_noisier_steps(trained, tmp_path):
  out = tmp_path / "a.png"
  flags = ("--edit=vary", "--num=4", "--steps=20")
  command(edit, f"--workdir={trained[0]}", *flags, f"--out={out}")
  data, *rows = tiles(out, 4, 4).astype(float)
  kept = [np.corrcoef(data.ravel(), row.ravel())[0, 1] for row in rows]
  assert kept[0] > kept[1] > kept[2]


def test_interpolation_runs_from_one_picture_to_the_next():
  # Gaussian data: their noise is known, and so is what lies between.
  config = common.make(schedule={"name": "cosine"})
  schedule = processes.schedule(config)
  exact = dj.clipped(NARROW.predictor(schedule), schedule)
  x0 = NARROW.sample(jax.random.key(0), (4, 8, 8, 1))
  asked = edit.Request(jax.random.key(1), "right")
  errors, rows = [], x0
  for num in (100, 200):
    model = edit.Model(schedule, exact, dj.timesteps.spaced(1000, num))
    (x,) = edit.interpolate(model, x0, asked)
    rows = x.reshape(2, 4, 8, 8, 1)
    gaps = [rows[0, 0] - x0[0], rows[0, -1] - x0[1], rows[1, 0] - x0[2]]
    errors.append(np.sqrt(np.mean(np.square(gaps))))
  # There and back by DDIM is of order 1: twice the steps, half the error.
  np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)
  assert errors[1] < 0.04 * NARROW.std
  # On the great circle nothing fades: a straight line would lose 5/9 of it.
  between = np.asarray(rows[:, 1:-1]) - NARROW.mean
  ends = np.asarray(x0) - NARROW.mean
  assert abs((between**2).mean() / (ends**2).mean() - 1) < 0.1


def test_an_interpolation_is_a_picture(trained):
  flags = ("--edit=interpolate", "--num=4", "--steps=4")
  command(edit, f"--workdir={trained[0]}", *flags)
  tiles(trained[0] / "samples" / "interpolate.png", 2, 4)


BAD = {
  "no workdir": ([], "--workdir is missing"),
  "steps": (["--workdir={0}", "--steps=15"], "must be a multiple of 10"),
  "many steps": (["--workdir={0}", "--steps=2000"], "must be in 1..T"),
  "few steps": (["--workdir={0}", "--edit=vary", "--steps=1"], "take more"),
  "one picture": (["--workdir={0}", "--num=1"], "2 are needed"),
  "no pictures": (["--workdir={0}", "--images=/nowhere"], "nowhere"),
  "classes": (["--workdir={1}"], "without label_dropout"),
  "format": (["--workdir={0}", "--out=a.jpg"], "must end in .png"),
  "operator": (["--workdir={0}", "--operator=warp"], "should be one of"),
  "edit": (["--workdir={0}", "--edit=cut"], "should be one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_edits_are_one_line(name, trained, capsys):
  flags, message = BAD[name]
  with pytest.raises(SystemExit) as stop:
    command(edit, *(flag.format(*trained) for flag in flags))
  assert_one_error(stop, capsys, message)
