"""Several checkpoints and averages of one run, measured alike."""

import types
from typing import Any

import pytest
from commands import assert_one_error, command, rows

from diffusion_jax.runs.evaluation import evaluating, stored, sweep
from experiments import evaluate
from experiments.configs import common

SWEEP = (
  "--num=20", "--steps=2", "--metrics=fid,kid", "--curve", "--ema=sweep",
)  # fmt: skip


@pytest.fixture
def run(zoo, tmp_path, few_numbers):
  """A run with two checkpoints and one average."""
  return zoo.copy("few", tmp_path / "run")


def test_a_sweep_goes_on_and_its_rows_are_those_of_single_evaluations(
  run, monkeypatch, capsys
):
  draw, drawn = stored._batch, []

  def interrupted(draws, first):
    drawn.append((draws[0][0].step, draws[0][0].ema))
    if len(drawn) == 3:
      raise KeyboardInterrupt
    return draw(draws, first)

  monkeypatch.setattr(stored, "_batch", interrupted)
  with pytest.raises(KeyboardInterrupt):
    command(evaluate, f"--workdir={run}", *SWEEP)
  command(evaluate, f"--workdir={run}", *SWEEP)
  want = [(step, ema) for step in (4, 8) for ema in ("raw", "0.995")]
  assert drawn == [*want[:3], *want[2:]]  # each once, but for the interrupted
  found = rows(run / "evaluation.jsonl")
  assert [(row["step"], row["ema"]) for row in found] == want
  assert len({row["samples_hash"] for row in found}) == 4
  said = capsys.readouterr().out.splitlines()
  best = min(found, key=lambda row: row["fid"])
  assert said[-1].startswith(
    f"best: step {best['step']}, average {best['ema']}, fid {best['fid']:.4g}"
  )
  assert said[-6].split() == ["step", "average", "fid", "kid"]
  # Again, there is nothing to draw.
  command(evaluate, f"--workdir={run}", *SWEEP)
  assert rows(run / "evaluation.jsonl") == found and len(drawn) == 5
  # The newest checkpoint alone.
  command(evaluate, f"--workdir={run}", *SWEEP[:3], "--ema=raw")
  assert rows(run / "evaluation.jsonl")[-1] == found[2]
  # An older one.
  older = ("--checkpoint=4", "--ema=raw")
  command(evaluate, f"--workdir={run}", *SWEEP[:3], *older)
  assert rows(run / "evaluation.jsonl")[-1] == found[0]


def test_bits_of_another_number_of_images_are_measured_anew(run, monkeypatch):
  asked = []

  def bits(plan, source):
    asked.append((plan.num, plan.ema))
    return {"bpd": 1.0, "bpd_standard_error": 0.1}

  monkeypatch.setattr(evaluating.measures, "bits_per_dim", bits)
  flags = (f"--workdir={run}", "--metrics=bpd", "--ema=sweep")
  for num in (20, 30, 20):
    command(evaluate, *flags, f"--num={num}")
  assert asked == [(n, ema) for n in (20, 30) for ema in ("raw", "0.995")]
  found = [row["images"] for row in rows(run / "evaluation.jsonl")]
  assert found == [20, 20, 30, 30]


def test_the_best_is_the_least_distance_or_the_most_agreement(capsys):
  made = [
    {"step": 4, "ema": "raw", "fid": 3.0, "fid_std": 0.1, "agreement": 0.5},
    {"step": 8, "ema": "0.9", "fid": 2.0, "fid_std": 0.1, "agreement": 0.4},
  ]
  sweep.say_table(made, ["fid", "agreement", "halves"])
  assert capsys.readouterr().out.splitlines() == [
    "step  average  fid       agreement",
    "4     raw      3 +- 0.1  0.5",
    "8     0.9      2 +- 0.1  0.4",
    "best: step 8, average 0.9, fid 2 +- 0.1",
  ]
  pr = {"precision": 0.5, "recall": 0.25}
  sweep.say_table([made[0] | pr], ["pr"])
  assert capsys.readouterr().out.splitlines()[:2] == [
    "step  average  precision  recall", "4     raw      0.5        0.25",
  ]  # fmt: skip
  sweep.say_table(made, ["agreement"])
  assert "best: step 4, average raw, agreement 0.5" in capsys.readouterr().out


def test_a_sweep_is_of_what_was_tracked_or_of_widths():
  config = common.make(ema={"rates": (0.9,), "stds": (0.05, 0.1)})
  plan: Any = types.SimpleNamespace(config=config)
  tracked = ["raw", "0.9", "std0.05", "std0.1"]
  assert sweep.averages(plan, "sweep") == tracked
  assert sweep.averages(plan, "sweep:0.07,0.1") == ["std0.07", "std0.1"]
  with pytest.raises(ValueError, match="`ema=std:0.5`: an average of width"):
    sweep.averages(plan, "sweep:0.07,0.5")
  with pytest.raises(ValueError, match="'std:' is not one of raw, 0.9, std"):
    sweep.averages(plan, "sweep:")
  config.ema.stds = ()
  with pytest.raises(ValueError, match="this run has kept no such averages"):
    sweep.averages(plan, "sweep:0.07")


def test_one_checkpoint_is_not_all(run, capsys):
  with pytest.raises(SystemExit) as stop:
    command(evaluate, f"--workdir={run}", *SWEEP, "--checkpoint=4")
  assert_one_error(stop, capsys, "--checkpoint=4 is one, and --curve")


@pytest.mark.parametrize(
  "flag",
  [
    "--curve", "--ema=sweep", "--checkpoint=4", "--guidance=2", "--steps=9",
    "--quantise=floor", "--cond=angle=1",
  ],
)  # fmt: skip
def test_given_samples_are_not_drawn(flag, capsys):
  with pytest.raises(SystemExit) as stop:
    command(evaluate, "--samples=digits", "--reference=digits", flag)
  name = flag.partition("=")[0]
  assert_one_error(stop, capsys, f"{name}: of what a --workdir draws")
