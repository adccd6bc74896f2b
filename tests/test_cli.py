"""What all commands share: how a line is read, output that breaks, refusals."""

import os
import pathlib
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from absl import flags

from diffusion_jax.runs import console, directory
from experiments import cli, sample, train
from experiments.cli import devices, signals, streams


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
  """A command run here must not watch the signals that later tests raise.

  The second of them would end the process of all tests.
  """
  monkeypatch.setattr(signals, "watch", lambda: None)


def parsed(*given):
  """The configuration that a command line means."""
  values, argv = flags.FlagValues(), ["train", *given]
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_list("upsampler", None, "", flag_values=values)
  cli.define_config(values, argv, train.DEFAULT_CONFIG)
  return cli.parse(argv, values)


def refused(capsys, *given) -> str:
  with pytest.raises(SystemExit) as stop:
    parsed(*given)
  assert stop.value.code == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  return line


@pytest.mark.parametrize(
  "given",
  [
    ["--config=configs/digits.py:smoke", "--config.seed=-3"],
    ["--config", "configs/digits.py:smoke", "--config.seed", "-3"],
    ["-config", "configs/digits.py:smoke", "-config.seed=-3"],
    ["--config.seed", "5", "--config=configs/digits.py:smoke"]
    + ["--config.seed", "-3"],
  ],
)
def test_a_space_is_as_good_as_an_equals_sign(given):
  config = parsed(*given).config
  assert (config.num_steps, config.seed) == (20, -3)
  name = cli.config_name(["train", *given], train.DEFAULT_CONFIG)
  assert name == "digits-smoke"
  assert cli.peek(["train", *given], "config")["config"] == (
    "configs/digits.py:smoke"
  )


def test_switches_need_no_value():
  assert parsed("--config.flip", "--config.seed=1").config.flip
  assert parsed("--config.flip", "True").config.flip
  assert not parsed("--config.flip", "--noconfig.flip").config.flip


@pytest.mark.parametrize(
  "key", ["optim.clip", "optim.decay_steps", "model.num_classes"]
)
def test_none_is_accepted_where_a_key_may_be_none(key):
  section, name = key.split(".")
  assert parsed(f"--config.{key}=3").config[section][name] == 3
  assert parsed(f"--config.{key}=None").config[section][name] is None
  last = parsed(f"--config.{key}=None", f"--config.{key}=3")
  assert last.config[section][name] == 3
  # A value that has been None keeps its type.
  classifier = parsed("--config=configs/classifier.py", "--config.optim.clip=2")
  assert classifier.config.optim.clip == 2.0


def test_the_configuration_of_a_run_may_have_none(tmp_path):
  config = parsed("--config.optim.clip=None").config
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  (tmp_path / "data.json").write_text("{}")
  argv, values = (
    ["train", "--config.optim.decay_steps=None"],
    flags.FlagValues(),
  )
  cli.define_known_config(values, argv, directory.changeable(tmp_path))
  optim = cli.parse(argv, values).config.optim
  assert optim.clip is None and optim.decay_steps is None
  argv, values = ["train", "--config.optim.clip=2"], flags.FlagValues()
  cli.define_known_config(values, argv, directory.changeable(tmp_path))
  assert cli.parse(argv, values).config.optim.clip == 2.0


@pytest.mark.parametrize("key", ["seed", "data.name", "ema.rates", "flip"])
def test_none_is_refused_where_a_key_must_have_a_value(key, capsys):
  line = refused(capsys, f"--config.{key}=None")
  assert f"--config.{key}=None: only" in line and "optim.clip" in line


@pytest.mark.parametrize(
  "given",
  [
    ["--workdir="], ["--workdir", ""], ["--workdir= "], ["--upsampler="],
    ["--upsampler=,b"], ["--upsampler=a,,b"],
    ["--config="], ["--config", ""], ["--config.data.name="],
    ["--config.data.name", ""], [""],
  ],
)  # fmt: skip
def test_an_empty_value_is_refused(given, capsys):
  assert "empty value" in refused(capsys, *given)


def test_a_warning_is_one_line(outputs, monkeypatch):
  monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
  cli.run(lambda argv: parsed())
  text = warnings.formatwarning("left out\n2 pictures", UserWarning, "x.py", 1)
  assert text == "warning: left out 2 pictures\n"


def test_the_home_directory_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  config = pathlib.Path(__file__).parents[1] / "experiments/configs/digits.py"
  (tmp_path / "own.py").write_text(config.read_text())
  values = parsed(
    "--config", "~/own.py:smoke", "--workdir=~/runs/a",
    "--upsampler=~/b,runs/~c,~/d", "--config.data.name=~/pictures",
  )  # fmt: skip
  assert values.config.num_steps == 20
  assert values.workdir == f"{tmp_path}/runs/a"
  assert values.upsampler == [f"{tmp_path}/b", "runs/~c", f"{tmp_path}/d"]
  assert values.config.data.name == "~/pictures"  # as it goes into the run
  known = cli.peek(["train", "--workdir=~/runs/a"], "workdir")
  assert known["workdir"] == values.workdir


ROOT = pathlib.Path(__file__).parents[1]


# Without what the other commands import.
SPEAKER = """
import experiments, runpy, types
streams = types.SimpleNamespace(**runpy.run_path("experiments/cli/streams.py"))
"""


def speak(code, redirect="", **options):
  """Runs a program that has imported nothing but ``streams``."""
  return subprocess.run(
    ["sh", "-c", f'exec "$0" "$@" {redirect}', sys.executable]
    + ["-c", SPEAKER + code],
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
  done = speak(code, redirect=">&- 2>&-")
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


@pytest.mark.parametrize("name", ["a.xyz", "a", "folder/a.npz"])
def test_an_output_of_another_kind(name, tmp_path):
  for out in (tmp_path / "a.PNG", tmp_path / "b.pdf"):
    cli.check_out(out, ".png", ".pdf")
  with pytest.raises(ValueError, match=r"--out=.* must end in \.png or \.pdf$"):
    cli.check_out(tmp_path / name, ".png", ".pdf")


def test_where_even_an_administrator_may_not_write():
  there = pathlib.Path("/proc")
  if not there.is_dir():
    pytest.skip("a system without /proc")
  with pytest.raises(ValueError, match="--workdir=/proc/x: /proc cannot be wr"):
    cli.check_out(there / "x", flag="workdir")


def test_the_suffix_of_an_output_may_be_in_capitals(tmp_path):
  images = np.zeros((2, 4, 4, 1), np.float32)
  for name in ("a.PNG", "a.NPZ"):
    sample.check_out(tmp_path / name, shape=(8, 8, 1))
    sample.save(tmp_path / name, images)
  assert (tmp_path / "a.PNG").is_file()
  assert np.load(tmp_path / "a.NPZ")["images"].shape == (2, 4, 4, 1)


def test_an_output_that_can_be_written(tmp_path, monkeypatch):
  (tmp_path / "there.png").touch()
  monkeypatch.chdir(tmp_path)
  for name in ("new/deep/a.png", "there.png", "a.npz", "folder"):
    cli.check_out(tmp_path / name)
    cli.check_out(pathlib.Path(name))


def test_only_what_is_slow_is_said(capsys):
  with console.said_if_slow("reading"):
    pass
  assert not capsys.readouterr().out
  with console.said_if_slow("reading", seconds=0) as said:
    del said
    for timer in console.threading.enumerate():
      if isinstance(timer, console.threading.Timer):
        timer.join()
  assert capsys.readouterr().out == "reading\n"


HANGS = f"""
import os, runpy, signal, time
hooks = runpy.run_path({str(ROOT / "experiments/cli/signals.py")!r})
signal.signal(signal.SIGTERM, lambda *_: None)
hooks["watch"]()
for _ in range(TIMES):
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.2)
print("goes on", flush=True)
"""


@pytest.mark.parametrize(
  ("times", "status", "out", "error"),
  [
    (1, 0, "goes on\n", ""),
    (2, 143, "", "error: stopped at once by a second signal, SIGTERM\n"),
  ],
)
def test_the_second_signal_ends_at_once(times, status, out, error):
  ended = subprocess.run(
    [sys.executable, "-c", HANGS.replace("TIMES", str(times))],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert (ended.returncode, ended.stdout, ended.stderr) == (status, out, error)


SWALLOWS = f"""
import os, runpy, signal, time
hooks = runpy.run_path({str(ROOT / "experiments/cli/signals.py")!r})
hooks["_listen"].__globals__["PATIENCE"] = 0.2
hooks["watch"]()
class Callback:  # what an exception meets in one is not raised
  def __del__(self):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10): pass
Callback()
try:
  time.sleep(60)
except KeyboardInterrupt:
  print("interrupted", flush=True)
"""


def test_a_lost_interrupt_is_raised_again():
  ended = subprocess.run(
    [sys.executable, "-c", SWALLOWS], capture_output=True, text=True,
    check=False, timeout=50,
  )  # fmt: skip
  assert (ended.returncode, ended.stdout) == (0, "interrupted\n")
  assert "Exception ignored" in ended.stderr  # it was lost


NOTES = f"""
import os, runpy, signal, time
hooks = runpy.run_path({str(ROOT / "experiments/cli/signals.py")!r})
hooks["_listen"].__globals__["PATIENCE"] = 0.1
noted = []
signal.signal(signal.SIGINT, lambda *_: noted.append(1))
hooks["watch"]()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.5)
print(len(noted), flush=True)
"""


def test_a_noted_interrupt_is_not_repeated():
  ended = subprocess.run(
    [sys.executable, "-c", NOTES], capture_output=True, text=True, check=False
  )
  assert (ended.returncode, ended.stdout) == (0, "1\n")


def test_an_interrupt_of_imports_is_no_traceback():
  command = [sys.executable, "-X", "importtime", "-m", "experiments.presets"]
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    for line in process.stderr:
      if line.endswith(" experiments\n"):  # then comes the command
        process.send_signal(signal.SIGINT)
        break
    rest = process.stderr.read()
  assert process.returncode == -signal.SIGINT
  assert "Traceback" not in rest and "experiments.cli\n" not in rest


CONFIG = "from experiments.configs import digits\ndef get_config(variant=''):\n"


def test_a_path_may_have_colons(tmp_path):
  path = tmp_path / "a:b" / "mine.py"
  path.parent.mkdir()
  path.write_text(f"{CONFIG}  return digits.get_config(variant)\n")
  for named, steps in ((path, 1500), (f"{path}:smoke", 20)):
    values = flags.FlagValues()
    argv = ["", f"--config={named}", "--config.batch_size=4"]
    cli.define_config(values, argv, "configs/digits.py")
    config = cli.parse(argv, values).config
    assert (config.num_steps, config.batch_size) == (steps, 4)
    assert cli.config_name(argv, "").startswith("mine")


def test_a_configuration_that_is_a_dict_is_refused(tmp_path, capsys):
  path = tmp_path / "mine.py"
  path.write_text(f"{CONFIG}  return digits.get_config().to_dict()\n")
  with pytest.raises(SystemExit) as stop:
    cli.define_config(flags.FlagValues(), ["", f"--config={path}"], "x")
  assert stop.value.code == 2
  assert "no configuration but a dict; begin" in capsys.readouterr().err
