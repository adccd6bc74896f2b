"""dj.runs: a run directory in Python, the same as its commands."""

import dataclasses
import functools
import json
import pathlib
import re
import signal
import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from absl import flags
from commands import BLIND, command, params_of, rows

import diffusion_jax as dj
from diffusion_jax.runs import (
  console,
  directory,
  drawing,
  networks,
  planning,
  restoring,
)
from diffusion_jax.runs.evaluation import stored
from diffusion_jax.runs.evaluation.options import EvaluationOptions
from diffusion_jax.runs.training import classification, diffusion, loop
from experiments import evaluate, sample
from experiments.cli import options, shell, training

ROOT = pathlib.Path(__file__).parents[1]
HOWS = {
  "few": {"num": 5, "steps": 2, "seed": 3},
  "conditional": {"num": 6, "steps": 3, "guidance": 3.0, "classes": (3, 8)},
  "small": {"num": 5, "steps": 2, "ema": "raw", "batch": 2},
  "upsampler": {"num": 4, "steps": 2, "sampler": "ddim", "eta": 0.5},
}


@pytest.fixture
def copy(zoo, tmp_path, few_numbers):
  """A run of the zoo of this name, opened."""
  return lambda name: dj.runs.open(zoo.copy(name, tmp_path / name))


def spelled(asked):
  """Options as flags."""
  for name, value in asked.items():
    listed = value if isinstance(value, tuple) else (value,)
    yield f"--{name}={','.join(map(str, listed))}"


def written(run, tmp_path, **asked):
  """What the command writes."""
  out = tmp_path / "a.npz"
  where = (f"--workdir={run.workdir}", f"--out={out}")
  command(sample, *where, *spelled(asked))
  return np.load(out)["images"]


@pytest.mark.parametrize("name", HOWS)
def test_samples_are_those_of_the_command(name, copy, tmp_path, capsys):
  run = copy(name)
  theirs = written(run, tmp_path, **HOWS[name])
  capsys.readouterr()
  ours = run.sample(**HOWS[name])
  assert capsys.readouterr().out == ""
  np.testing.assert_array_equal(dj.images.to_uint8(ours), theirs)
  root = jax.random.key(HOWS[name].get("seed", 0))
  same = {k: v for k, v in HOWS[name].items() if k != "seed"}
  np.testing.assert_array_equal(run.sample(key=root, **same), ours)
  other = run.sample(key=jax.random.key(99), **same)
  assert (other != ours).any()


def test_other_runs_are_named_by_path_or_opened(copy, tmp_path):
  base, judge, upsampler = map(copy, ("small", "judge", "upsampler"))
  how = {"num": 3, "steps": 2}
  theirs = written(base, tmp_path, upsampler=upsampler.workdir, **how)
  ours = base.sample(upsampler=upsampler, **how)
  np.testing.assert_array_equal(dj.images.to_uint8(ours), theirs)
  # Pictures that are at hand are as good as a file of them.
  small = dj.data.load("digits", size=4).gather(np.arange(3))["image"]
  np.save(tmp_path / "small.npy", small)
  np.testing.assert_array_equal(
    upsampler.sample(low_res=dj.images.from_uint8(small), **how),
    upsampler.sample(low_res=tmp_path / "small.npy", **how),
  )
  run = copy("few")
  guided = {"classifier": judge.workdir, "guidance": 5.0, "classes": (3,)}
  theirs = written(run, tmp_path, **guided, **how)
  ours = run.sample(classifier=judge, guidance=5, classes=3, **how)
  np.testing.assert_array_equal(dj.images.to_uint8(ours), theirs)


def test_what_is_compiled_is_used_again(copy, monkeypatch):
  run, make, made = copy("conditional"), drawing.generator, []
  monkeypatch.setattr(
    drawing, "generator", lambda plan: made.append(plan) or make(plan)
  )
  how = {"num": 4, "steps": 2, "classes": 3}
  run.sample(seed=1, guidance=1.5, **how)
  again = run.sample(seed=2, guidance=3.0, ema="raw", **how)
  older = run.sample(seed=2, guidance=3.0, ema="raw", checkpoint=4, **how)
  assert len(made) == 1 and (older != again).any()
  # Other programs: without guidance, of more steps.
  run.sample(guidance=1, **how)
  run.sample(**{**how, "steps": 3})
  assert len(made) == 3
  fresh = dj.runs.open(run).sample(seed=2, guidance=3.0, ema="raw", **how)
  np.testing.assert_array_equal(again, fresh)


def test_a_run_predicts_for_every_function_of_the_library(copy):
  run = copy("conditional")
  predict, schedule = run.predict(), run.schedule
  y = jnp.array([3, 8, 3])
  guided = dj.guidance.classifier_free(
    run.predict(clip=False), schedule, run.conditions.null, 2.0
  )
  x, _ = dj.sample(
    dj.ddim_step,
    dj.given(dj.clipped(guided, schedule), run.conditions.given(y, None)),
    schedule,
    (3, *run.image_shape),
    jax.random.key(7),
    pairs=dj.spacing.named(schedule, "even", 4),
  )
  drawn = run.sample(
    3, seed=7, steps=4, sampler="ddim", guidance=2.0, classes=[3, 8]
  )
  np.testing.assert_allclose(x, drawn, atol=1e-5)
  x_t = 3 * jnp.ones((3, *run.image_shape))
  cond = run.conditions.given(y, None)
  assert abs(predict(x_t, 10, cond).x0_hat).max() <= 1
  for other in (x_t[..., [0, 0, 0]], x_t[..., 0]):
    with pytest.raises(ValueError, match=r"conditional is of images \[N, 8"):
      predict(other, 10, cond)


def test_parameters_and_data_of_a_run(copy):
  run = copy("few")
  chex.assert_trees_all_equal(run.params("raw"), params_of(run.workdir))
  chex.assert_trees_all_equal(run.params(), run.params(0.995))
  assert run.data["class_names"][:2] == ["0", "1"]
  images = dj.data.load("digits").gather(np.arange(5))["image"]
  np.testing.assert_array_equal(run.images(5), dj.images.from_uint8(images))
  assert run.config.num_steps == 8 and isinstance(run.net, toy.FewNumbers)


def test_a_row_is_that_of_the_command(copy, capsys):
  run = copy("few")
  how = {"num": 20, "steps": 2, "metrics": ("fid", "kid"), "batch": 16}
  row = run.evaluate(**how)
  assert capsys.readouterr().out == ""
  command(evaluate, f"--workdir={run.workdir}", *spelled(how))
  kept = rows(run.workdir / "evaluation.jsonl")
  assert kept == [json.loads(json.dumps(row))] * 2


def test_what_names_stored_samples_stays_as_it_is(copy):
  # Samples and rows of earlier versions are found by it.
  plan = planning.plan(
    copy("conditional").workdir,
    dj.runs.SamplingOptions(num=9, steps=4, classes=(3,), seed=2, batch=4),
  )
  described = stored.describe(plan)
  (stage,) = described.pop("stages")
  assert described == {"quantise": "round", "seed": 2, "batch": 4}
  assert list(stage.pop("network")) == [
    "model", "schedule", "target", "variance", "low_res",
  ]  # fmt: skip
  for name in ("params", "pairs"):
    assert len(stage.pop(name)) == 16
  assert stage == {
    "image_shape": (8, 8, 1), "step": 8, "ema": "0.995", "sampler": "unipc",
    "steps": 4, "spacing": None, "eta": None, "classes": (3,), "guidance": 2.0,
    "classifier": None, "low_res": None, "low_res_noise": 0,
  }  # fmt: skip


BAD = {
  "unknown": ({"step": 5}, "unknown option 'step'; try steps"),
  "negative": ({"seed": -1}, "`seed=-1` must be in 0..4294967295"),
  "text": ({"steps": "many"}, "`steps='many'` must be a whole number"),
  "digits": ({"steps": "3"}, "`steps='3'` must be a whole number"),
  "half": ({"steps": 2.5}, "`steps=2.5` must be a whole number"),
  "nan": ({"guidance": float("nan")}, "`guidance=nan` must be a finite numb"),
  "sampler": ({"sampler": "eular"}, "`sampler` 'eular' is not one of ancest"),
  "spans": ({"sampler": "meanflow"}, "`sampler`: meanflow needs a network "),
  "average": ({"ema": "0.5"}, "`ema` '0.5' is not one of raw, 0.995"),
  "classes": ({"classes": [3]}, "`classes`: this run's network .* `classifi"),
  "guidance": ({"guidance": 2.0}, "`guidance` needs a network that can draw"),
  "low_res": ({"low_res": np.zeros((1, 4, 4, 1))}, "`low_res`: .* enlarges no"),
}


@pytest.mark.parametrize(("asked", "message"), BAD.values(), ids=BAD)
def test_errors_name_options(asked, message, zoo, few_numbers):
  run = dj.runs.open(zoo.original("few"))
  with pytest.raises(ValueError, match=message) as error:
    run.sample(4, **asked)
  assert "--" not in str(error.value)


def test_small_pictures_of_another_size_are_refused(copy):
  with pytest.raises(ValueError, match=r"has shape \(1, 2, 2, 1\): .*4, 4, 1"):
    copy("upsampler").sample(low_res=np.zeros((1, 2, 2, 1)))


def test_a_classifier_draws_nothing(copy):
  run = copy("judge")
  for ask in (run.sample, run.predict, lambda: run.conditions):
    with pytest.raises(ValueError, match="this run is a classifier"):
      ask()
  assert run.params()["w"].shape == (8, 8, 1, 10)


def test_no_directory_and_no_table(copy, tmp_path):
  with pytest.raises(ValueError, match="no run directory .*fewer; there is"):
    dj.runs.open(copy("few").workdir.with_name("fewer"))
  with pytest.raises(ValueError, match="`samples` are 2, which make a table"):
    dj.runs.open(tmp_path / "few").evaluate(samples=("a.npz", "b.npz"))
  with pytest.raises(ValueError, match="`curve` and `ema=sweep` make a table"):
    dj.runs.open(tmp_path / "few").evaluate(curve=True)


def test_the_readmes_example_runs(zoo, tmp_path, few_numbers, monkeypatch):
  zoo.copy("few", tmp_path / "runs" / "digits")
  readme = (ROOT / "README.md").read_text()
  (block,) = re.findall(r"^```py\n(.*?)^```", readme, re.M | re.S)
  monkeypatch.chdir(tmp_path)
  names = {"dj": dj}
  exec(block, names)
  chex.assert_shape(names["x"], (64, 8, 8, 1))
  assert names["row"]["samples"] == 500 and names["row"]["frechet"] > 0


def test_training_is_that_of_the_command(zoo, tmp_path, few_numbers, capsys):
  line = ["train", *BLIND, "--config.num_steps=8"]
  config = training.command_line(line, "").config
  run = dj.runs.train(config, tmp_path / "run")
  assert capsys.readouterr().out.count("next:") == 0
  chex.assert_trees_all_equal(run.params("raw"), params_of(zoo.original("few")))
  with pytest.raises(ValueError, match="holds a run with another config"):
    dj.runs.train(dj.runs.make(**{**config.to_dict(), "seed": 1}), run)


@pytest.mark.parametrize(
  ("number", "ends"),
  [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_a_signal_ends_training_as_python_expects(
  number, ends, tmp_path, few_numbers, monkeypatch
):
  monkeypatch.setattr(loop, "train", lambda *_: number)
  config = training.command_line(["train", *BLIND], "").config
  with pytest.raises(ends):
    dj.runs.train(config, tmp_path / "run")


@pytest.mark.parametrize(
  ("ema", "shown"),
  [
    ({"rates": (0.999, 0.9), "stds": (0.1,)}, "0.999"),
    ({"rates": (), "stds": (0.1, 0.05)}, "std0.1"),
    ({"rates": ()}, "raw"),
  ],
)
def test_the_last_picture_is_of_the_slowest_average(
  ema, shown, tmp_path, few_numbers
):
  config = dj.runs.make(ema=ema, optim={"name": "schedule_free"})
  tx = networks.optimizer(config)
  state = networks.state(config, {"a": jnp.ones(3)}, tx)
  updates, opt_state = tx.update(
    {"a": jnp.ones(3)}, state.opt_state, state.params
  )
  params = {"a": state.params["a"] + updates["a"]}
  averages = {k: {"a": jnp.full(3, n)} for n, k in enumerate(state.ema)}
  # As a checkpoint may give them back.
  averages = dict(sorted(averages.items(), reverse=True))
  state = state.replace(params=params, opt_state=opt_state, ema=averages)
  seen = []

  class Generator:
    def walk(self, params, key, first):
      seen.append(params)
      yield jnp.zeros((1, 8, 8, 1))

  class Log:
    def say(self, line):
      pass

  key = jax.random.key(0)
  diffusion._finish(config, tmp_path, Generator(), state, key, Log())
  chex.assert_trees_all_equal(seen[0], restoring.weights(state, shown))


def test_schedule_frees_average_is_what_training_measures():
  config = dj.runs.make(ema={"rates": ()}, optim={"name": "schedule_free"})
  tx = networks.optimizer(config)
  state = networks.state(config, {"a": jnp.ones(3)}, tx)
  state = state.replace(params={"a": jnp.zeros(3)})
  want, seen = dj.optimizers.evaluated(state), []
  assert (want["a"] != state.params["a"]).all()

  def right(params, *_):
    seen.append(params)
    return np.ones(4), np.ones(4)

  key, digits = jax.random.key(0), dj.data.load("digits")
  held = functools.partial(
    classification.measure_held_out, right, dj.data.subset(digits, 4), 4
  )
  batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4)}
  classification.measure(right, held, state, batch, key)
  chex.assert_trees_all_equal(*seen, want)


def test_a_preview_is_no_distance_from_what_has_drawn_it(tmp_path):
  state = dj.state.create(
    {"a": jnp.ones(3)}, dj.training.optimizer(lr=0.1, name="schedule_free"), ()
  )
  state = state.replace(params={"a": jnp.zeros(3)})
  seen = []

  class Generator:
    batch = 1

    def __call__(self, *_):
      return np.zeros((1, 8, 8, 1), np.float32)

  def measured(samples, params, newest):
    seen.append((params, newest))
    return {}

  log = types.SimpleNamespace(preview=lambda *_: None, picture=lambda *_: None)
  diffusion.preview(
    tmp_path, Generator(), measured, state, jax.random.key(0), 1, log
  )
  ((params, newest),) = seen
  assert params is newest is not state.params


@pytest.mark.parametrize("kind", [dj.runs.SamplingOptions, EvaluationOptions])
def test_every_option_is_a_flag_of_the_same_default(kind):
  values = options.define(flags.FlagValues(), kind)
  values(["command"])
  assert options.read(values, kind) == kind()
  for field in dataclasses.fields(kind):
    assert "`" not in values[field.name].help


def test_options_are_spelled_as_flags_in_commands():
  line = "`classes`: pass a `classifier`, `num=8` or `config.ema.stds='(1, 2)'`"
  assert shell.in_flags(line) == (
    "--classes: pass a --classifier, --num=8 or --config.ema.stds='(1, 2)'"
  )


def test_warnings_are_said_where_it_is_quiet(capsys):
  with console.quiet():
    console.say_first("figures")
    console.warn("damage")
  console.say_first("again")
  assert capsys.readouterr().out == "damage\nagain\n"


def test_the_library_alone_reads_no_configurations():
  code = (
    "import sys, diffusion_jax as dj; print('ml_collections' in sys.modules)"
  )
  code += "\nprint(dj.runs.open.__name__, 'ml_collections' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ["False", "open", "True"]


@pytest.mark.parametrize("key", [0, "0", jax.random.split(jax.random.key(0))])
def test_a_key_that_is_none_is_refused(key):
  with pytest.raises(ValueError, match="`key` is a .*: pass one key"):
    dj.runs.run._check_key(key)


def test_a_key_beside_a_seed_is_refused(zoo):
  run = dj.runs.open(zoo.original("few"))
  with pytest.raises(ValueError, match="`key` and `seed` both"):
    run.sample(1, key=jax.random.key(0), seed=0)


def test_no_pictures_are_refused(zoo, few_numbers):
  run = dj.runs.open(zoo.original("few"))
  for num, message in ((-3, "`num=-3` must be at"), (2.5, "must be a whole")):
    with pytest.raises(ValueError, match=message):
      run.images(num)
  with pytest.raises(ValueError, match="`metrics` are missing: name some of"):
    run.evaluate(metrics=())


def test_none_of_an_option_is_its_usual_value():
  said = dict.fromkeys(("num", "seed", "quantise", "batch", "classes", "eta"))
  assert dj.runs.SamplingOptions(**said) == dj.runs.SamplingOptions()
  with pytest.raises(ValueError, match="`keep_samples='no'` must be True or"):
    EvaluationOptions(keep_samples="no")  # type: ignore
  with pytest.raises(ValueError, match="`samples` is an array: pass a name"):
    EvaluationOptions(samples=np.zeros((2, 8, 8, 1)))  # type: ignore
  with pytest.raises(ValueError, match="`steps` is an array: pass one int"):
    dj.runs.SamplingOptions(steps=np.array([1, 2]))  # type: ignore
  dj.runs.SamplingOptions(low_res=np.zeros((2, 8, 8, 1)))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"foo": 1}, '^Key "foo" does not exist and cannot be added .* locked.$'),
    ({"num_steps": "7"}, "field 'num_steps'"),
    ({"optim": None}, "optim=None must be a dict of b1, b2"),
    ({"data": "digits"}, "data='digits' must be a dict of channels, cond"),
    ({"model": "dit"}, "model='dit' must be a dict, such as"),
  ],
)
def test_a_configuration_that_is_none_is_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    dj.runs.make(**changes)
  assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("config", [None, {}, "configs/digits.py"])
def test_training_takes_a_configuration(config, tmp_path):
  with pytest.raises(ValueError, match="`config` is a .*: pass one of dj.runs"):
    dj.runs.train(config, tmp_path / "run")


def test_the_folder_of_runs_names_them(tmp_path):
  (tmp_path / "runs" / "mine").mkdir(parents=True)
  (tmp_path / "runs" / "mine" / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="in it there is .*/runs/mine$"):
    dj.runs.open(tmp_path / "runs")


def test_numbers_beside_the_data_are_read_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "angles.csv").write_text("a\n1\n")
  config = dj.runs.make(data={"cond": "angles.csv"})
  source = dj.data.load("digits")
  for name, content in (
    ("config", directory.config_json(config)),
    ("data", directory.describe(source, config)),
  ):
    directory.replace(tmp_path / f"{name}.json", json.dumps(content))
  monkeypatch.chdir("/")
  read = directory.changeable(tmp_path)
  assert read.data.cond == str(tmp_path / "angles.csv")


# Only a sample has an argument that vmap traces.
@pytest.mark.parametrize(
  ("way", "name"),
  [
    (jax.jit, "params"), (jax.jit, "predict"), (jax.jit, "sample"),
    (jax.vmap, "sample"),
  ],
)  # fmt: skip
def test_what_reads_files_is_called_outside_of_traces(way, name, copy):
  run, keys = copy("few"), jax.random.split(jax.random.key(0), 1)
  asked = {
    "params": lambda key: run.params()["a"],
    "predict": lambda key: run.predict()(jnp.zeros((1, 8, 8, 1)), 1).x0_hat,
    "sample": lambda key: run.sample(1, steps=1, key=key),
  }[name]
  with pytest.raises(ValueError, match=rf"^run.{name}.* outside, and ") as one:
    way(asked)(keys)
  assert "damaged" not in str(one.value) and "\n" not in str(one.value)
  assert run.params()


def test_a_target_that_is_none_is_one_line(copy):
  run = copy("few")
  path = run.workdir / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "target": "x"}))
  run = dj.runs.open(run.workdir)
  for call in (run.predict, lambda: run.sample(1, steps=1)):
    with pytest.raises(ValueError, match="target 'x' is not one of eps, "):
      call()
