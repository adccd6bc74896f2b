import json
import types

from diffusion_jax.runs import directory
from diffusion_jax.runs.training import reporting
from diffusion_jax.runs.training.reporting import Log


def log_of(workdir, first_step=0, quiet=False):
  return Log(
    workdir,
    first_step=first_step,
    num_steps=10,
    batch_size=4,
    quiet=quiet,
  )


def test_previews_have_a_file_of_their_own(tmp_path):
  with log_of(tmp_path) as log:
    log.metrics(2, {"loss": 0.5})
    log.preview(2, "raw", {"drift": [0.1, -0.2], "saturated": 0.5})
    log.preview(2, "ema0.9", {"drift": [0.0, 0.0], "distance": 0.25})
  assert directory.read_rows(tmp_path / "previews.jsonl") == [
    {"step": 2, "of": "raw", "drift": [0.1, -0.2], "saturated": 0.5},
    {"step": 2, "of": "ema0.9", "drift": [0.0, 0.0], "distance": 0.25},
  ]
  # Every row of metrics.jsonl stays a row of training.
  (row,) = directory.read_rows(tmp_path / "metrics.jsonl")
  assert row["loss"] == 0.5 and row["images"] == 8


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint(tmp_path):
  for name in ("metrics", "previews"):
    rows = [
      json.dumps({"step": k, "loss": 1.0, "of": "raw"}) for k in (2, 4, 6)
    ]
    torn = '{"step": 7, "lo'
    (tmp_path / f"{name}.jsonl").write_text("\n".join([*rows, torn]))
  with log_of(tmp_path, first_step=4) as log:
    log.metrics(5, {"loss": 2.0})
    log.preview(5, "raw", {"saturated": 0.0})
  for name in ("metrics", "previews"):
    steps = [
      row["step"] for row in directory.read_rows(tmp_path / f"{name}.jsonl")
    ]
    assert steps == [2, 4, 5]


def test_the_time_of_a_preview_is_none_of_training(tmp_path, monkeypatch):
  now = [100.0]
  clock = types.SimpleNamespace(perf_counter=lambda: now[0])
  monkeypatch.setattr(reporting, "time", clock)
  with log_of(tmp_path) as log:
    now[0] += 4  # 4 steps, of a second each
    with log.pause():  # between two logged lines
      now[0] += 50
    now[0] += 2
    log.metrics(6, {"loss": 0.5})
    with log.pause():
      now[0] += 50
    now[0] += 2
    log.metrics(8, {"loss": 0.5})
  found = directory.read_rows(tmp_path / "metrics.jsonl")
  assert [row["steps_per_s"] for row in found] == [1, 1]
  assert [row["images_per_s"] for row in found] == [4, 4]


def test_only_the_first_process_writes(tmp_path):
  with log_of(tmp_path, quiet=True) as log:
    log.preview(2, "raw", {"saturated": 0.5})
  assert not list(tmp_path.iterdir())


def test_what_is_damaged_in_a_log_is_no_row(tmp_path):
  rows = b'{"step": 2, "loss": 1.0}\n\xff\x80\n[]\nnull\n3\n{"loss": 1.0}\n'
  (tmp_path / "metrics.jsonl").write_bytes(rows)
  with log_of(tmp_path, first_step=4) as log:
    log.metrics(5, {"loss": 2.0})
  found = directory.read_rows(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in found] == [2, 5]
