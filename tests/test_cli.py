"""How a command line is read: spellings, empty values, None."""

import pathlib
import warnings

import pytest
from absl import flags

from experiments import cli, runs
from experiments.train import DEFAULT_CONFIG


def parsed(*given):
  """The configuration that a command line means."""
  values, argv = flags.FlagValues(), ["train", *given]
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_list("upsampler", None, "", flag_values=values)
  cli.define_config(values, argv, DEFAULT_CONFIG)
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
  name = cli.config_name(["train", *given], DEFAULT_CONFIG)
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
  argv, values = (
    ["train", "--config.optim.decay_steps=None"],
    flags.FlagValues(),
  )
  cli.define_known_config(values, argv, runs.changeable(tmp_path))
  optim = cli.parse(argv, values).config.optim
  assert optim.clip is None and optim.decay_steps is None
  argv, values = ["train", "--config.optim.clip=2"], flags.FlagValues()
  cli.define_known_config(values, argv, runs.changeable(tmp_path))
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


def test_a_warning_is_one_line(monkeypatch):
  monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
  parsed()
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
