"""The protocol: a result in a given time, beside diffusers'."""

import json
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
from commands import refused
from PIL import Image

from experiments import cli
from experiments.tools.protocol import __main__ as protocol, page


def leave(folder, name, **result):
  (folder / f"{name}.json").write_text(json.dumps(result))


@pytest.fixture
def finished(tmp_path):
  """A directory as the stages leave it."""
  leave(tmp_path, "train", checkpoints=[[10, 60.0], [20, 120.0]])
  leave(tmp_path, "peer", saved_seconds=[30.0, 60.0, 90.0, 120.0])
  leave(
    tmp_path, "evaluate ours", fid=12.345, fid_std=0.061, kid=0.00123,
    precision=0.61, recall=0.52, agreement=0.912,
  )  # fmt: skip
  leave(
    tmp_path, "evaluate diffusers", fid=30.0, fid_std=0.1, kid=0.02,
    precision=0.5, recall=0.4,
  )  # fmt: skip
  leave(tmp_path, "curve ours", samples=100)
  (tmp_path / "ours").mkdir()
  rows = [
    {"step": 10, "samples": 100, "fid": 20.0},
    {"step": 20, "samples": 100, "fid": 13.0},
    {"step": 20, "samples": 500, "fid": 12.345},
    {"step": 20, "samples": 100, "guidance": 1.5, "fid": 15.0},
  ]
  (tmp_path / "ours" / "evaluation.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  leave(tmp_path, "curve diffusers 2", fid=50.0)
  leave(tmp_path, "curve diffusers 4", fid=31.0)
  return tmp_path


def test_the_table_has_a_row_for_each_set_of_samples(finished):
  page.write(finished)
  head, _, *rows = (finished / "table.md").read_text().splitlines()
  assert head.startswith("|  | Frechet distance | KID x 1000 | precision |")
  assert rows == [
    "| diffusers | 30.00 +- 0.10 | 20.00 | 0.500 | 0.400 | - |",
    "| ours | 12.35 +- 0.06 | 1.23 | 0.610 | 0.520 | 91.2% |",
  ]
  assert (finished / "quality.png").stat().st_size > 0


def test_the_curve_is_over_minutes(finished):
  lines = page.curves(finished)
  np.testing.assert_allclose(lines["ours"], ([1, 2], [20, 13]))
  np.testing.assert_allclose(lines["diffusers"], ([1, 2], [50, 31]))


def test_nothing_to_show_is_said(tmp_path):
  with pytest.raises(ValueError, match="no figures yet: run --stages=evaluate"):
    page.write(tmp_path)


@pytest.mark.parametrize("begun", [True, False])
def test_a_training_whose_time_is_not_known_is_refused(
  begun, tmp_path, capsys, monkeypatch
):
  def saves_nothing(_):
    return types.SimpleNamespace(wait=lambda timeout: None, returncode=0)

  monkeypatch.setattr(protocol.subprocess, "Popen", saves_nothing)
  if begun:
    (tmp_path / "ours").mkdir()
  message = "interrupted" if begun else "no checkpoint was saved within"
  asked = ("--stages=train", f"--workdir={tmp_path}")
  assert message in refused(capsys, protocol, *asked)


@pytest.mark.parametrize(
  ("stages", "there", "message"),
  [
    ("evaluate,page", [], "evaluate needs what --stages=train leaves"),
    ("train,evaluate", [], "evaluate needs what --stages=peer leaves"),
    ("evaluate", ["train"], "evaluate needs what --stages=peer leaves"),
    ("peer", [], "peer needs what --stages=train leaves"),
    ("peer,train", [], "peer needs what --stages=train leaves"),
  ],
)
def test_a_stage_before_another_is_missed_at_once(
  stages, there, message, tmp_path, capsys, monkeypatch
):
  def never(*_, **__):
    raise AssertionError("began to work")

  monkeypatch.setattr(subprocess, "Popen", never)
  for name in there:
    leave(tmp_path, name, seconds=1)
  asked = (f"--stages={stages}", f"--workdir={tmp_path}")
  assert f"--stages={message}" in refused(capsys, protocol, *asked)


def test_a_file_is_no_place_for_results(tmp_path, capsys):
  (tmp_path / "file").touch()
  said = refused(capsys, protocol, f"--workdir={tmp_path / 'file'}")
  assert "is a file; choose another --workdir" in said


def test_each_set_of_samples_is_drawn_and_measured_once(tmp_path, monkeypatch):
  drawn, measured = [], []

  def peer(_, *, part, num, **__):
    drawn.append((part, num))
    return {"samples": f"{part} {num}"}

  def run(module, *arguments, **_):
    if module == "experiments.sample":
      return ""
    flags = dict(flag.split("=", 1) for flag in arguments if "=" in flag)
    if "--samples" not in flags:
      return ""
    paths = flags["--samples"].split(",")
    measured.append((flags["--metrics"], len(paths)))
    return "".join(
      f"of {path}\n" + json.dumps({"pictures": path}) + "\n" for path in paths
    )

  argv = ["protocol", f"--workdir={tmp_path}", "--num=20", "--curve=20"]
  values = protocol.define_flags(argv)
  cli.parse(argv, values)
  monkeypatch.setattr(protocol, "_run", run)
  monkeypatch.setattr(protocol.Protocol, "_peer", peer)
  monkeypatch.setattr(protocol.Protocol, "_conditional", lambda _: True)
  protocol.Protocol(values, []).evaluate()
  assert sorted(drawn) == [(1, 20), (2, 20), (3, 20), (4, 20)]
  assert measured == [("fid,kid,pr,agreement", 2), ("fid,kid,pr", 4)]
  row = page.result(tmp_path, "evaluate diffusers")
  assert row == page.result(tmp_path, "curve diffusers 4")
  assert row == {"pictures": "4 20"}
  guided = page.result(tmp_path, "evaluate ours, guided")
  assert guided == {"pictures": f"{tmp_path}/samples/ours-guided.npz"}


@pytest.mark.slow
@pytest.mark.torch
def test_the_whole_protocol_runs_small(tmp_path):
  pytest.importorskip("diffusers")
  rng = np.random.default_rng(0)
  with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as file:
    for k in range(40):
      picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
      with file.open(f"{'ab'[k % 2]}/{k}.png", "w") as opened:
        picture.save(opened, "PNG")
  command = [
    sys.executable, "-m", "experiments.tools.protocol",
    f"--config.data.name={tmp_path / 'pictures.zip'}",
    "--config.num_steps=8", "--config.batch_size=8",
    "--config.model.channels=32", "--config.model.head_channels=32",
    "--config.optim.warmup_steps=2", "--config.optim.decay_steps=8",
    "--config.every.checkpoint=2", "--config.every.log=4",
    f"--workdir={tmp_path / 'run'}", "--minutes=10", "--features=pixels",
    "--num=20", "--curve=20", "--steps=2", "--batch=20", "--peer_batch=8",
    "--nocompile",
  ]  # fmt: skip
  subprocess.run(command, check=True, timeout=900)
  written = (tmp_path / "run" / "table.md").read_text()
  assert all(name in written for name in ("ours", "ours, guided", "diffusers"))
  lines = page.curves(tmp_path / "run")
  assert len(lines["ours"][0]) == 4 and len(lines["diffusers"][0]) == 4
  # Each stage has left its result: nothing is done twice.
  again = subprocess.run(command, check=True, timeout=300, capture_output=True)
  assert b"the first step compiles" not in again.stdout
