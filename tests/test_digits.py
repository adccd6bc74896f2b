"""The whole: a fifth of the README's run must already draw digits."""

import json

import pytest

from experiments import evaluate, train


@pytest.mark.slow
def test_a_short_run_draws_every_digit(tmp_path):
  workdir = tmp_path / "digits"
  train.main(
    [
      "train",
      "--config=configs/digits.py",
      f"--workdir={workdir}",
      "--config.num_steps=300",
      "--config.optim.decay_steps=300",
    ]
  )
  evaluate.main(["evaluate", f"--workdir={workdir}", "--num=600", "--steps=20"])
  row = json.loads((workdir / "evaluation.jsonl").read_text())
  # 0.61 measured, seed 0. Independent pixels with the data's means and
  # variances score 6.9, clipped noise 45.
  assert row["frechet"] < 0.8
  assert min(row["classes"].values()) > 600 / 10 / 3, row["classes"]
