"""What all commands have in common: output that breaks, names, refusals."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import cli, devices, streams

ROOT = pathlib.Path(__file__).parents[1]


def speak(code, **options):
  """Runs a program that has imported nothing but ``streams``."""
  return subprocess.run(
    [sys.executable, "-c", f"from experiments import streams\n{code}"],
    cwd=ROOT,
    check=False,
    **options,
  )


def test_work_goes_on_where_nobody_reads(tmp_path):
  # A pipe whose reader has gone, as that of `| true`.
  end, start = os.pipe()
  os.close(end)
  code = f"""
import sys
streams.steady()
for number in range(3):
  print(number, flush=number != 1)
  print(number, file=sys.stderr)
open({str(tmp_path / "done")!r}, "w").close()
"""
  done = speak(code, stdout=start, stderr=start)
  os.close(start)
  assert done.returncode == 0 and (tmp_path / "done").exists()


def test_nothing_takes_the_place_of_a_closed_output(tmp_path):
  code = f"""
import os, sys
streams.steady()
file = open({str(tmp_path / "file")!r}, "w")
print("a word"), print("a word", file=sys.stderr), os.write(1, b"a word")
file.close()
assert file.name and sys.stdout.isatty() is False
"""
  done = speak(code, preexec_fn=lambda: (os.close(1), os.close(2)))
  assert done.returncode == 0
  assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf-8"])
def test_every_name_can_be_said(encoding):
  code = r"streams.steady(); print('caf\u00e9 \udcff \u96ea')"
  env = {**os.environ, "PYTHONIOENCODING": encoding}
  done = speak(code, env=env, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.decode(encoding).startswith("caf")


@pytest.fixture
def outputs(monkeypatch):
  """Leaves the tests' own output alone."""
  monkeypatch.setattr(streams, "steady", lambda: None)


def ends(main, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.run(main)
  (line,) = capsys.readouterr().err.splitlines()
  return stop.value.code, line


def test_ctrl_c_is_one_line_and_130(outputs, capsys, monkeypatch):
  def main(argv):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "_exit", sys.exit)
  assert ends(main, capsys) == (130, "error: stopped by Ctrl-C")


def test_devices_that_are_not_here_are_one_line(outputs, capsys, monkeypatch):
  # JAX asserts, where it knows a platform and finds none of it.
  code = compile(
    "assert False", "/site-packages/jax/_src/xla_bridge.py", "exec"
  )
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  status, line = ends(lambda argv: exec(code), capsys)
  assert status == 1 and line.startswith("error: JAX_PLATFORMS='cuda' is not h")
  with pytest.raises(AssertionError):  # a fault of ours stays one
    cli.run(lambda argv: exec("assert False"))


def test_a_user_without_a_home_keeps_no_programs(monkeypatch):
  kept = []
  monkeypatch.setattr(os.path, "expanduser", lambda name: name)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(devices.jax.config, "update", lambda *x: kept.append(x))
  values = {"jax_compilation_cache_dir": None}
  monkeypatch.setattr(type(devices.jax.config), "values", values)
  devices.keep_compiled()
  assert not kept
  monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
  devices.keep_compiled()
  assert kept == [("jax_compilation_cache_dir", "/cache/diffusion_jax")]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("file/a.png", "is a file; name another place"),
    ("folder.png", "is a folder; name a file"),
    ("locked/new/a.png", "locked cannot be written"),
    ("locked/a.npz", "locked cannot be written"),
    ("locked", "locked cannot be written"),
  ],
)
def test_an_output_that_cannot_be_written(name, message, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  (tmp_path / "folder.png").mkdir()
  (tmp_path / "locked").mkdir()
  access = os.access
  monkeypatch.setattr(  # an administrator may write everywhere
    os, "access", lambda path, how: path.name != "locked" and access(path, how)
  )
  with pytest.raises(ValueError, match=message):
    cli.check_out(tmp_path / name)
  assert len(list(tmp_path.iterdir())) == 3


def test_an_output_that_can_be_written(tmp_path, monkeypatch):
  (tmp_path / "there.png").touch()
  monkeypatch.chdir(tmp_path)
  for name in ("new/deep/a.png", "there.png", "a.npz", "folder"):
    cli.check_out(tmp_path / name)
    cli.check_out(pathlib.Path(name))


def test_only_what_is_slow_is_said(capsys):
  with cli.said_if_slow("reading"):
    pass
  assert not capsys.readouterr().out
  with cli.said_if_slow("reading", seconds=0) as said:
    del said
    for timer in cli.threading.enumerate():
      if isinstance(timer, cli.threading.Timer):
        timer.join()
  assert capsys.readouterr().out == "reading\n"


CONFIG = "from experiments.configs import digits\ndef get_config(variant=''):\n"


def test_a_path_may_have_colons(tmp_path):
  path = tmp_path / "a:b" / "mine.py"
  path.parent.mkdir()
  path.write_text(f"{CONFIG}  return digits.get_config(variant)\n")
  for named, steps in ((path, 1500), (f"{path}:smoke", 20)):
    values = cli.flags.FlagValues()
    argv = ["", f"--config={named}", "--config.batch_size=4"]
    cli.define_config(values, argv, "configs/digits.py")
    config = cli.parse(argv, values).config
    assert (config.num_steps, config.batch_size) == (steps, 4)
    assert cli.config_name(argv, "").startswith("mine")


def test_a_configuration_that_is_a_dict_is_refused(tmp_path, capsys):
  path = tmp_path / "mine.py"
  path.write_text(f"{CONFIG}  return digits.get_config().to_dict()\n")
  with pytest.raises(SystemExit) as stop:
    cli.define_config(cli.flags.FlagValues(), ["", f"--config={path}"], "x")
  assert stop.value.code == 2
  assert "no configuration but a dict; begin" in capsys.readouterr().err
