"""The evaluate command: interrupted, with other references, of any pictures."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import Any

import commands
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from commands import assert_one_error, command

import diffusion_jax as dj
from diffusion_jax.runs import configuration, datasets, planning
from diffusion_jax.runs.evaluation import (
  checks,
  evaluating,
  features,
  references,
  scores,
  stored,
)
from diffusion_jax.runs.evaluation.options import EvaluationOptions
from experiments import evaluate, sample

METRICS = "--metrics=frechet,fid,kid,pr,fid_inf"


@pytest.fixture(scope="module")
def measured(zoo, tmp_path_factory):
  """A run, its samples and the figures of an uninterrupted go."""
  workdir = zoo.copy("few", tmp_path_factory.mktemp("evaluate") / "run")
  out = workdir / "samples.npz"
  flags = (f"--workdir={workdir}", "--num=50", "--steps=2", "--batch=16")
  with toy.networks():
    command(sample, *flags, f"--out={out}")
    command(evaluate, *flags, METRICS)
  return workdir, flags, np.load(out)["images"], rows(workdir)[-1]


@pytest.fixture
def run(measured, few_numbers, tmp_path):
  """The same, with a copy of the run."""
  original, flags, *rest = measured
  workdir = shutil.copytree(original, tmp_path / "run")
  return workdir, (f"--workdir={workdir}", *flags[1:]), *rest


def rows(workdir):
  return commands.rows(workdir / "evaluation.jsonl")


def pixels(images):
  return images.reshape(len(images), -1) / 127.5 - 1


def digits():
  source = dj.data.load("digits")
  return source.gather(np.arange(len(source)))["image"]


def test_figures_are_those_of_the_samples(run):
  _, _, samples, row = run
  ours, data = pixels(samples), pixels(digits())
  want = dj.metrics.frechet_distance(ours, data)
  np.testing.assert_allclose(row["fid"], want, rtol=1e-5)
  np.testing.assert_allclose(row["frechet"], want, rtol=1e-12)
  precision, recall = dj.metrics.precision_recall(data, ours)
  assert (row["precision"], row["recall"]) == (precision, recall)
  assert (row["samples"], row["kid_subsets"], row["steps"]) == (50, 10, 2)
  assert (row["quantise"], row["feature_network"]) == ("round", "pixels")
  assert row["reference_hash"] == dj.data.load("digits").fingerprint


def test_an_interrupted_evaluation_gives_the_same_figures(
  run, monkeypatch, capsys
):
  workdir, flags, samples, row = run
  draw = stored._batch
  firsts = []

  def interrupted(draws, first):
    if len(firsts) == 1:
      raise KeyboardInterrupt
    firsts.append(first)
    return draw(draws, first)

  monkeypatch.setattr(stored, "_batch", interrupted)
  with pytest.raises(KeyboardInterrupt):
    command(evaluate, *flags, METRICS)
  (folder,) = (workdir / "evaluation").iterdir()
  description = json.loads((folder / "samples.json").read_text())
  assert description["stages"][0]["sampler"] == "unipc"

  def counted(draws, first):
    firsts.append(first)
    return draw(draws, first)

  monkeypatch.setattr(stored, "_batch", counted)
  capsys.readouterr()
  command(evaluate, *flags, METRICS)
  assert "16 of them are there already" in capsys.readouterr().out
  assert firsts == [0, 16, 32, 48]  # each once
  assert rows(workdir)[-1] == row  # bit for bit
  assert not (workdir / "evaluation").exists()


def test_kept_samples_are_used_again_for_what_they_are(run, monkeypatch):
  workdir, flags, samples, _ = run
  command(evaluate, *flags, "--keep_samples")
  (folder,) = (workdir / "evaluation").iterdir()
  kept = np.concatenate([np.load(p) for p in sorted(folder.glob("*.npy"))])
  np.testing.assert_array_equal(kept[:50], samples)
  draw = stored._batch

  def refuse(*_):
    raise AssertionError("drawn again")

  monkeypatch.setattr(stored, "_batch", refuse)
  command(evaluate, *flags, "--keep_samples", "--metrics=kid")
  # Fewer of them, too.
  command(evaluate, *flags, "--num=40", "--keep_samples", "--metrics=kid")
  monkeypatch.setattr(stored, "_batch", draw)
  for change in ("--seed=1", "--quantise=floor"):
    command(evaluate, *flags, change, "--keep_samples", "--metrics=kid")
  assert len(list((workdir / "evaluation").iterdir())) == 3


@pytest.mark.slow
def test_a_killed_evaluation_gives_the_same_figures(zoo, tmp_path):
  workdir = zoo.copy("unet", tmp_path / "run")
  flags = (
    f"--workdir={workdir}", "--num=50", "--sampler=ancestral", "--steps=200",
    "--batch=16",
  )  # fmt: skip
  line = [sys.executable, "-m", "experiments.evaluate", *flags, METRICS]
  command(evaluate, *flags, METRICS)
  with subprocess.Popen(line) as process:
    while not list(workdir.glob("evaluation/*/00000000.npy")):
      assert process.poll() is None
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
  assert list(workdir.glob("evaluation/*/00000000.npy"))
  command(evaluate, *flags, METRICS)
  first, second = rows(workdir)[-2:]
  assert first == second


def test_pictures_are_measured_without_a_run(tmp_path, capsys):
  images = digits()
  np.savez(tmp_path / "a.npz", images=images[:200])
  command(
    evaluate, f"--samples={tmp_path}/a.npz", "--reference=digits", METRICS
  )
  *said, last = capsys.readouterr().out.splitlines()
  row = json.loads(last)
  assert row["samples"] == 200 and row["precision"] == 1
  assert abs(row["kid"]) < 4 * row["kid_standard_error"]
  assert any("warning: of fewer than 10,000 samples" in line for line in said)
  # Against themselves.
  command(
    evaluate,
    f"--samples={tmp_path}/a.npz",
    f"--reference={tmp_path}/a.npz",
    "--metrics=fid",
  )
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["fid"] < 1e-9


def test_several_samples_share_the_features_of_the_data(tmp_path, monkeypatch):
  seen, look = [], features.look

  def looked(source, *rest):
    seen.append(source.name)
    return look(source, *rest)

  def measured(*samples):
    return evaluating.evaluate(
      None,
      EvaluationOptions(
        samples=samples, reference=tmp_path / "c.npz", metrics=("fid", "pr")
      ),
    )

  images = digits()
  np.savez(tmp_path / "a.npz", images=images[:200])
  np.savez(tmp_path / "b,x.npz", images=images[200:300])
  np.savez(tmp_path / "c.npz", images=images[300:500])
  # As a command line has it, and nevertheless one file.
  alone = measured(*f"{tmp_path}/b,x.npz".split(","))
  monkeypatch.setattr(features, "look", looked)
  first, second = measured(tmp_path / "a.npz", tmp_path / "b,x.npz")
  assert seen == ["c.npz", "a.npz", "b,x.npz"]
  assert [second] == alone
  assert first["samples"] == 200 and second["samples"] == 100


@pytest.fixture
def small_inception(monkeypatch):
  """Features of the names and kinds of Inception's, quickly."""

  def network_of(params, names):
    def network(images):
      x = images.reshape(len(images), -1).astype(jnp.float32) / 64
      found = {"2048": x[:, ::7], "spatial": x[:, ::9], "logits": x[:, :5]}
      return {name: found[name] for name in names}

    return network

  monkeypatch.setattr(dj.metrics.inception_weights, "load", lambda *_, **__: {})
  monkeypatch.setattr(dj.metrics.inception, "features", network_of)


def test_reference_batches_bring_statistics_and_pictures(
  small_inception, tmp_path, capsys
):
  rng = np.random.default_rng(0)
  samples, real = rng.integers(0, 256, (2, 60, 4, 4, 3), np.uint8)
  of = lambda x, step: dj.metrics.moments.moments(
    x.reshape(len(x), -1)[:, ::step] / 64
  ).gaussian()
  reference = tmp_path / "reference.npz"
  # As OpenAI's: the statistics are of more pictures than are in the file.
  more = np.concatenate([real, samples[:7]])
  (mu, sigma), (mu_s, sigma_s) = of(more, 7), of(more, 9)
  np.savez(
    reference, arr_0=real, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s
  )
  (tmp_path / "pictures").mkdir()
  for k, picture in enumerate(samples):
    dj.images.save_png(tmp_path / "pictures" / f"{k:02}.png", picture)
  flags = (f"--samples={tmp_path}/pictures", "--features=inception")
  command(
    evaluate, *flags, f"--reference={reference}", "--metrics=fid,sfid,is,kid,pr"
  )
  row = json.loads(capsys.readouterr().out.splitlines()[-1])
  for name, step in (("fid", 7), ("sfid", 9)):
    want = dj.metrics.frechet(of(samples, step), of(more, step))
    np.testing.assert_allclose(row[name], want, rtol=1e-4)
  logits = samples.reshape(60, -1)[:, :5] / 64
  want = dj.metrics.inception_score(logits)
  np.testing.assert_allclose((row["is"], row["is_std"]), want, rtol=1e-5)
  assert row["reference_images"] == 60 and row["feature_network"] != "pixels"
  # Statistics alone are enough for FID, not for KID.
  np.savez(tmp_path / "statistics.npz", mu=mu, sigma=sigma)
  flags = (*flags, f"--reference={tmp_path}/statistics.npz")
  command(evaluate, *flags, "--metrics=fid")
  again = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert again["fid"] == row["fid"] and again["reference_images"] is None
  for metric in ("kid", "sfid"):
    with pytest.raises(SystemExit) as stop:
      command(evaluate, *flags, f"--metrics={metric}")
    assert_one_error(stop, capsys, "features but no pictures")


def test_two_evaluations_of_the_same_samples_do_not_meet(run, capsys):
  workdir, flags, _, _ = run
  asked = EvaluationOptions(num=50, steps=2, batch=16)
  plan = planning.plan(workdir, asked)
  generators = stored.generators(plan)
  with stored.drawn(plan, generators) as first:
    with pytest.raises(SystemExit) as stop:
      command(evaluate, *flags, "--metrics=kid")
    assert_one_error(stop, capsys, "another process is measuring the same")
    # Other samples are no concern of the first, nor is the folder of all.
    command(evaluate, *flags, "--metrics=kid", "--seed=1")
    assert len(first.gather(np.arange(50))["image"]) == 50
  assert not (workdir / "evaluation").exists()


def test_a_run_that_cannot_be_written_is_measured_or_refused_at_once(
  run, monkeypatch, capsys
):
  workdir, flags, _, _ = run
  before = rows(workdir)
  monkeypatch.setattr(evaluating.os, "access", lambda *_: False)
  with pytest.raises(SystemExit) as stop:
    command(evaluate, *flags, "--metrics=kid")
  assert_one_error(stop, capsys, "cannot be written, where samples are kept")
  command(evaluate, f"--workdir={workdir}", "--metrics=halves")
  out = capsys.readouterr().out
  assert "so the figures are only printed" in out
  assert json.loads(out.splitlines()[-1])["halves"] > 0
  assert rows(workdir) == before


def test_a_row_that_cannot_be_written_is_printed(tmp_path, capsys):
  (tmp_path / "evaluation.jsonl").mkdir()
  with pytest.raises(OSError, match="the row is printed instead"):
    evaluating.keep(tmp_path / "evaluation.jsonl", {"fid": 1})
  assert capsys.readouterr().out == '{"fid": 1}\n'


def test_data_that_have_changed_since_training_are_refused(
  run, monkeypatch, capsys
):
  workdir, flags, _, _ = run
  monkeypatch.setattr(
    datasets,
    "source",
    lambda _, elsewhere: dj.data.load("digits", size=16),
  )
  with pytest.raises(SystemExit) as stop:
    command(evaluate, *flags)
  assert_one_error(stop, capsys, "digits has changed since .* was trained")


def test_bits_of_continuous_time_are_refused():
  config = configuration.make(schedule={"name": "ve"})
  plan = types.SimpleNamespace(config=config)
  with pytest.raises(
    ValueError, match="discrete steps, and schedule.name=ve is"
  ):
    checks.check_bits(plan, None)


BAD_INPUT = {
  "metric": (["--metrics=fed"], "'fed' is not one of frechet"),
  "no reference": (["--samples={a}"], "name a --reference, or a --workdir"),
  "too many": (
    ["--samples={a}", "--reference={a}", "--num=9"],
    "--num=9 images were asked for, --samples has 8",
  ),
  "no classes": (
    ["--samples={a}", "--reference=digits", "--metrics=agreement"],
    "or --samples with labels",
  ),
  "one class": (
    ["--samples={one}", "--reference={one}", "--metrics=agreement"],
    "one.npz has 1 classes; compare with",
  ),
  "no network": (
    ["--samples={a}", "--reference={a}", "--metrics=bpd"],
    "bpd asks the network of a --workdir",
  ),
  "other pixels": (
    ["--samples={a}", "--reference=digits", "--metrics=fid"],
    r"\(4, 4, 3\) and data of \(8, 8, 1\)",
  ),
  "other pixels, as ever": (
    ["--samples={a}", "--reference=digits"], "have different pixels",
  ),
  "too few": (
    ["--samples={a}", "--reference={a}", "--metrics=kid"],
    "kid of 8 samples: pass --num=20 or more",
  ),
  "too few data": (
    ["--samples=digits", "--reference={a}", "--num=20", "--metrics=kid"],
    "kid needs 20 pictures of the data or more, a.npz has 8",
  ),
  "logits": (
    ["--samples={a}", "--reference={a}", "--metrics=is"],
    "is looks at Inception's logits: pass --features=inception",
  ),
  "no weights": (
    [
      "--samples={a}", "--reference={a}", "--metrics=is",
      "--features=inception", "--inception={tmp_path}",
    ],
    "--inception: Inception's weights are not in .*: download https.*--incept",
  ),
  "no statistics": (
    ["--samples={a}", "--reference={bad}"], "a reference has arr_0",
  ),
  "statistics of Inception": (
    ["--samples={a}", "--reference={stats}", "--metrics=fid"],
    "stats.npz has statistics of Inception's features: pass --features=incep",
  ),
  "statistics and pixels": (
    ["--samples={a}", "--reference={stats}"], "name pictures as --reference",
  ),
  "no metrics": (
    ["--samples={a}", "--reference={a}", "--metrics="],
    "--metrics has an empty value",
  ),
  "no samples named": (
    ["--samples=", "--reference={a}"], "--samples has an empty value",
  ),
  "no reference named": (
    ["--samples={a}", "--reference="],
    "--reference has an empty value",
  ),
  "one sample": (
    ["--samples={a}", "--reference={a}", "--num=1"],
    "frechet of 1 samples to 8 images: must be at least 2 and 4",
  ),
  "no such features": (
    ["--samples={a}", "--reference={a}", "--metrics=fid", "--features=pixel"],
    "--features 'pixel' is not one of pixels, inception; a network of your own",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(name, tmp_path, capsys):
  flags, message = BAD_INPUT[name]
  np.savez(tmp_path / "a.npz", images=np.full((8, 4, 4, 3), 200, np.uint8))
  one = np.full((8, 4, 4, 3), 200, np.uint8)
  np.savez(tmp_path / "one.npz", images=one, labels=np.zeros(8, int))
  np.savez(tmp_path / "bad.npz", other=np.zeros(3))
  np.savez(tmp_path / "stats.npz", mu=np.zeros(48), sigma=np.eye(48))
  files = ("a", "one", "bad", "stats")
  names = {name: tmp_path / f"{name}.npz" for name in files}
  flags = [flag.format(tmp_path=tmp_path, **names) for flag in flags]
  if name == "metric":
    flags.append("--samples=a")
  with pytest.raises(SystemExit) as stop:
    command(evaluate, *flags)
  assert_one_error(stop, capsys, message)


def test_inception_refuses_pictures_that_it_cannot_see(small_inception):
  network = features.named("inception", None)
  source = dj.data.sources.in_memory(
    "two", np.zeros((9, 4, 4, 2), np.uint8), np.zeros(9), ()
  )
  with pytest.raises(ValueError, match="channels=2"):
    scores.check(["fid"], network, references.of_source(source), (4, 4, 2), 9)


@pytest.mark.parametrize(
  ("shape", "classes", "message"),
  [
    ((7, 5, 1), 10, r"bpd: other has image_shape \(7, 5, 1\), run \(8, 8, 1\)"),
    ((8, 8, 1), 12, "bpd: other has num_classes 12, run 10"),
    ((8, 8, 1), 0, "bpd: other has num_classes 0, run 10"),
  ],
)
def test_bits_of_data_that_the_network_does_not_know(shape, classes, message):
  plan: Any = types.SimpleNamespace(
    image_shape=(8, 8, 1),
    workdir="run",
    config=configuration.make(model={"num_classes": 10}),
  )
  pictures = dj.data.Source(
    name="other", image_shape=shape, class_names=("x",) * classes
  )
  with pytest.raises(ValueError, match=message):
    checks.check_bits(plan, pictures)
  known = dataclasses.replace(
    pictures, image_shape=(8, 8, 1), class_names=("x",) * 10
  )
  checks.check_bits(plan, known)
