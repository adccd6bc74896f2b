"""experiments.prepare, run as a user runs it."""

import json

import numpy as np
import pytest
from commands import assert_one_error, command, refused
from PIL import Image

from diffusion_jax import data
from experiments import prepare


@pytest.fixture
def pictures(tmp_path):
  rng = np.random.default_rng(0)
  for k in range(5):
    (tmp_path / "pictures" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (9 + k, 12, 3), np.uint8)).save(
      tmp_path / "pictures" / "ab"[k % 2] / f"{k}.png"
    )
  return tmp_path / "pictures"


def flags(pictures, *more):
  return (
    f"--config.data.name={pictures}",
    "--config.data.size=8",
    "--config.data.channels=3",
    *more,
  )


def test_what_is_prepared_is_what_would_be_decoded(pictures, tmp_path, capsys):
  out = tmp_path / "cache"
  for _ in range(2):  # the second time it is checked
    command(prepare, *flags(pictures, f"--out={out}"))
    assert f"--config.data.name={out}" in capsys.readouterr().out
  source = data.load(out)
  truth = data.load(pictures, size=8, channels=3)
  np.testing.assert_array_equal(source.images, truth.images)
  assert source.fingerprint == truth.fingerprint


def test_where_nothing_can_be_written_no_data_are_opened(
  tmp_path, capsys, monkeypatch
):
  def opened(_):
    raise AssertionError("the data would have been opened")

  monkeypatch.setattr(prepare, "opened", opened)
  (tmp_path / "file").touch()
  line = refused(capsys, prepare, *flags("a", f"--out={tmp_path}/file"))
  assert f"{tmp_path}/file is a file; name another place" in line


def test_only_one_command_prepares_a_cache(pictures, tmp_path, capsys):
  out = tmp_path / "cache"
  with prepare.alone(out):
    line = refused(capsys, prepare, *flags(pictures, f"--out={out}"))
    assert f"another process prepares {out}: wait for it, or name" in line
    assert {path.name for path in out.iterdir()} == {"lock"}
  command(prepare, *flags(pictures, f"--out={out}"))
  assert len(data.load(out)) == 5


@pytest.mark.slow
def test_several_processes_write_the_same(pictures, tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  command(prepare, *flags(pictures, f"--out={one}"))
  command(prepare, *flags(pictures, f"--out={two}", "--processes=2"))
  for name in ("images.npy", "labels.npy", "cache.json"):
    assert (one / name).read_bytes() == (two / name).read_bytes()


BAD = {
  "no out": ([], "--out is missing"),
  "other": (["--out={0}"], "a cache of other data or options"),
  "taken": (["--out={1}"], "holds something else"),
  "crops": (["--out=a", "--config.data.random_crop=True"], "random_crop"),
  "no data": (["--out=a", "--config.data.name=/nowhere/a.zip"], "no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_one_line_and_leave_nothing(
  name, pictures, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  given, message = BAD[name]
  out = tmp_path / "cache"
  out.mkdir()
  (out / "cache.json").write_text(json.dumps({
    "format": 1, "plan": {"image_shape": [1]},
  }))  # fmt: skip
  with pytest.raises(SystemExit) as stop:
    command(
      prepare, *flags(pictures), *(f.format(out, pictures) for f in given)
    )
  assert_one_error(stop, capsys, message)
  assert not (tmp_path / "a").exists()
