"""experiments.tools.compare, with a network of a few numbers."""

import contextlib

import pytest
from commands import command, refused, rows

import diffusion_jax as dj
from diffusion_jax.runs.evaluation import evaluating
from experiments.configs import digits
from experiments.tools import compare

pytestmark = pytest.mark.usefixtures("few_numbers")


@pytest.fixture
def short(monkeypatch):
  """Every variant takes two steps."""
  make = digits.get_config

  def get_config(variant=""):
    config = make(variant)
    config.update({"num_steps": 2, "batch_size": 8, "steps_per_dispatch": 1})
    config.optim.update({"warmup_steps": 0, "decay_steps": 2})
    config.every.update({"log": 2, "preview": 2, "checkpoint": 2})
    config.preview.num = 0
    return config

  monkeypatch.setattr(digits, "get_config", get_config)


def test_each_seed_is_trained_and_measured_once(
  short, tmp_path, capsys, monkeypatch
):
  asked = (
    f"--workdir={tmp_path}", "--variants=ddpm,consistency", "--calls=1,2",
    "--seeds=2", "--sampler=own",
  )  # fmt: skip

  def table():
    capsys.readouterr()
    command(compare, *asked)
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("|")]

  first = table()
  assert [line.split(" | ")[0] for line in first] == [
    "| network calls", "| ---", "| ddpm", "| consistency",
  ]  # fmt: skip
  assert all(line.count("+-") == 2 for line in first[2:])
  names = {
    f"{name}-{k}" for name in ("ddpm", "consistency", "edm") for k in "01"
  }
  assert {path.name for path in tmp_path.iterdir()} == names
  runs = [dj.runs.open(tmp_path / f"ddpm-{k}") for k in (0, 1)]
  assert [run.config.seed for run in runs] == [0, 1]
  begun = dj.runs.open(tmp_path / "consistency-1").config.init.run
  assert begun == str(tmp_path / "edm-1")

  def never(*_, **__):
    raise AssertionError("measured a second time")

  monkeypatch.setattr(evaluating, "measure", never)
  assert table() == first


def test_a_row_that_was_measured_otherwise_is_another(
  zoo, tmp_path, monkeypatch
):
  run = dj.runs.open(zoo.copy("few", tmp_path / "run"))
  asked = []

  def measured(subject, *_):
    asked.append((subject.metrics, subject.plan.options.spacing))
    return {subject.metrics[0]: len(asked)}

  monkeypatch.setattr(evaluating, "measure", measured)
  monkeypatch.setattr(
    evaluating, "_samples", lambda *_: contextlib.nullcontext()
  )
  how = {"sampler": "heun", "steps": 3}
  run.evaluate(**how, spacing="quadratic")
  run.evaluate(**how, metrics=("fid",))
  assert [compare.distance(run, calls, "heun") for calls in (5, 6, 5)] == [
    3
  ] * 3
  assert asked == [
    (("frechet",), "quadratic"), (("fid",), None), (("frechet",), None),
  ]  # fmt: skip


def test_distillation_is_a_run_for_each_halving(
  short, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(compare, "HALVINGS", {4: 2, 2: 3})
  asked = ("--variants=distilled", "--calls=2,4", "--seeds=1")
  command(compare, f"--workdir={tmp_path}", *asked, "--sampler=own")
  runs = [dj.runs.open(tmp_path / f"distilled-{n}-0") for n in (4, 2)]
  before = [tmp_path / "v-0", runs[0].workdir]
  assert [run.config.init.run for run in runs] == [str(path) for path in before]
  assert [run.config.num_steps for run in runs] == [2, 3]
  for run, steps in zip(runs, (4, 2), strict=True):
    (row,) = rows(run.workdir / "evaluation.jsonl")
    assert (row["sampler"], row["spacing"]) == ("ddim", "trailing")
    assert row["steps"] == steps


def test_the_mean_and_the_spread_are_over_seeds():
  assert compare.row("v", [[0.1, 0.25]]) == "| v | 0.100 | 0.250 |"


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--variants=emd", "'emd' is not one of"),
    ("--sampler=unipcc", "--sampler 'unipcc' is not one of own"),
    ("--calls=5,0", "--calls: '0' must be a whole number above 0"),
    ("--variants=distilled", "--calls=5,10,20,50: distilled takes 32, 16, 8"),
    ("--calls=few", "--calls: 'few' must be a whole number above 0"),
    (
      "--calls=5,2000 --sampler=ddim",
      "--calls=2000: ddpm: 2000 sampling steps must be in 1.",
    ),
    (
      "--variants=flow,v,edm --calls=1001 --sampler=own",
      "--calls=1001: v: 1001 sampling steps must be in 1..T=1000",
    ),
    ("--seeds=0", "0 is not a positive integer"),
  ],
)
def test_a_wrong_flag_is_refused_before_training(flag, message, capsys):
  asked = ("--workdir=/dev/null/none", *flag.split())
  assert message in refused(capsys, compare, *asked)
