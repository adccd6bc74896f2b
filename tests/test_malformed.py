"""Whatever is wrong with what a user gives, one line says it, and no more.

The tables of the other files test messages; these are for breadth: every key
with values that it cannot have, every file of a run directory broken in every
way, configuration files that are not.
"""

import json
import shutil

import pytest
from commands import TINY, command, refused
from PIL import Image

from diffusion_jax.runs import checks, configuration, processes
from diffusion_jax.runs.training import loop
from experiments import edit, evaluate, export_weights, sample, train

# Overrides of experiments.train: no configuration can mean these.
OVERRIDES = [
  "seed=-1", "seed=1.5", "seed=one", "num_steps=-3", "num_steps=1e3",
  "batch_size=0", "batch_size=-8", "batch_size=many", "micro_batches=0",
  "micro_batches=-1", "micro_batches=7", "steps_per_dispatch=0",
  "fsdp=perhaps", "flip=perhaps",
  "data.name=", "data.name=/nowhere/at/all", "data.name=digits.zip",
  "data.split=test", "data.size=(0,)", "data.size=(-8,)",
  "data.size=(1,2,3)", "data.size=eight", "data.size=(32.5,)",
  "data.size=(8.0,8.0)", "data.size=(True,)", "data.channels=2",
  "data.channels=-1", "data.nmae=digits",
  "schedule.name=", "schedule.T=-5", "schedule.T=1.5", "schedule.T=ten",
  "schedule.offset=x", "schedule.beta=0.1",
  "target=", "target=epsilon", "variance=", "variance=small",
  "loss.name=", "loss.name=mse", "loss.weight=big", "loss.gamma=5",
  "label_dropout=-0.1", "label_dropout=1.5", "label_dropout=0.1",
  "cond_dropout=(0.1,)", "low_res.noise=5", "sampling.guidance=2.0",
  "init.ema=raw", "objective.teacher=True",
  "low_res.size=(3,)", "low_res.size=(0,)", "low_res.size=(16,)",
  "low_res.size=(8,)", "low_res.size=(4.0,)", "low_res.size=(4,4,4)",
  "timesteps=random",
  "model.channels=0", "model.channels=-8", "model.channels=8.5",
  "model.channels=1", "model.multipliers=()", "model.multipliers=(0,)",
  "model.multipliers=(1,1,1,1,1)", "model.multipliers=(-1,)",
  "model.multipliers=wide", "model.attention_levels=(0.5,)",
  "ema.rates=(None,)",
  "model.num_blocks=0", "model.num_blocks=-1",
  "model.attention_levels=(3,)", "model.attention_levels=(-1,)",
  "model.heads=0", "model.heads=-1", "model.heads=3",
  "model.head_channels=3", "model.head_channels=0",
  "model.qkv_order=kqv", "model.dropout=-0.1", "model.dropout=1.5",
  "model.dropout=high", "model.resample=pool", "model.num_classes=3",
  "model.num_classes=-1", "model.embedding=learned", "model.groups=3",
  "model.groups=0", "model.epsilon=-1", "model.padding=reflect",
  "model.dtype=float33", "model.dtype=int32", "model.remat=perhaps",
  "model.attention_kernel=flash",
  "model.depth=3",
  "optim.lr=-1", "optim.lr=nan", "optim.lr=fast", "optim.warmup_steps=-1",
  "optim.decay=quickly",
  "optim.decay_steps=0", "optim.decay_steps=-4", "optim.clip=0",
  "optim.clip=-1", "optim.b1=1", "optim.b1=-0.1", "optim.b2=2",
  "optim.eps=-1", "optim.weight_decay=-1", "optim.momentum=0.9",
  "ema.rates=(1,)", "ema.rates=(-0.1,)", "ema.rates=high",
  "every.log=0", "every.preview=-5", "every.checkpoint=0.5",
  "every.picture=5", "keep_checkpoints=0", "keep_checkpoints=-1",
  "preview.num=-4", "preview.sampler=fast",
  "preview.steps=0", "preview.steps=5000", "preview.spacing=dense",
  "sampling.sampler=", "sampling.steps=0", "sampling.spacing=ddim7,8",
  "sampling.guidance=strong", "sampling.eta=1",
]  # fmt: skip

CONFIGS = {
  "empty": "",
  "no function": "x = 1\n",
  "syntax": "def get_config(:\n",
  "raises": "def get_config():\n  raise ValueError('no such thing')\n",
  "import": "import no_such_module\n\ndef get_config():\n  return None\n",
  "nothing": "def get_config():\n  return None\n",
  "a number": "def get_config():\n  return 3\n",
  "too few keys": (
    "import ml_collections\n\ndef get_config():\n"
    "  return ml_collections.ConfigDict({'seed': 0})\n"
  ),
}

FLAGS = [
  "--config", "--config=", "--config=configs", "--config=configs/digits",
  "--workdir", "--steps=5", "--config.seed",
  "--dry_run=perhaps", "digits.py", "--num-steps=5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch, tmp_path):
  def compiled(*_, **__):
    raise AssertionError("training would have begun")

  monkeypatch.setattr(loop, "train", compiled)
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_impossible_value_is_one_line(override, capsys):
  refused(capsys, train, *TINY, f"--config.{override}")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_configuration_file_is_one_line(name, tmp_path, capsys):
  path = tmp_path / "broken.py"
  path.write_text(CONFIGS[name])
  assert "broken" in refused(capsys, train, f"--config={path}")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_is_none_is_one_line(flag, capsys):
  refused(capsys, train, flag)


# What else can be wrong with data is in test_data.py, where they are read.
@pytest.mark.parametrize(
  ("name", "content"),
  [("a.npz", b"text"), ("a.zip", b"text"), ("pictures/a.png", b"\x89PNG")],
)
def test_broken_data_are_one_line(name, content, tmp_path, capsys):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  named = path if path.suffix != ".png" else path.parent
  line = refused(capsys, train, *TINY, f"--config.data.name={named}")
  assert path.name in line


@pytest.fixture(scope="module")
def described(tmp_path_factory):
  """A run directory that has begun, with no checkpoint yet."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "train", lambda run, _: loop.describe(run, 0, {}))
    workdir = tmp_path_factory.mktemp("runs") / "run"
    command(train, *TINY, f"--workdir={workdir}")
  return workdir


def without(*keys):
  def change(content):
    values = json.loads(content)
    for key in keys:
      del values[key]
    return json.dumps(values)

  return change


def replaced(**values):
  return lambda content: json.dumps({**json.loads(content), **values})


# What can become of a file of a run directory: of its text comes another, or
# None if it is gone.
DAMAGES = {
  "gone": lambda text: None,
  "empty": lambda text: "",
  "torn": lambda text: text[: len(text) // 2],
  "no object": lambda text: "[1, 2]",
  "not text": lambda text: "\udcff",
}
OF_ONE_FILE = {
  "config.json": {
    "no model": without("model"),
    "no schedule": without("schedule"),
    "no sampling": without("sampling"),
    "no ema": without("ema"),
    "other model": replaced(model={"channels": 8}),
    "schedule of a number": replaced(schedule=3),
    "unknown key": replaced(colour="red"),
    "unknown schedule": replaced(schedule={"name": "cos", "T": 1000}),
  },
  "data.json": {
    "no shape": without("image_shape"),
    "no classes": without("num_classes"),
    "no names": without("class_names"),
    "no fingerprint": without("fingerprint"),
    "flat shape": replaced(image_shape=[8]),
    "shape of text": replaced(image_shape="8 x 8"),
  },
}
BROKEN_RUNS = {
  f"{file}, {name}": (file, change)
  for file, own in OF_ONE_FILE.items()
  for name, change in {**DAMAGES, **own}.items()
}


# Every harm to one command, and one harm to every other: one reader serves all.
@pytest.mark.parametrize(
  ("module", "name"),
  [
    *((sample, name) for name in BROKEN_RUNS),
    *((m, "data.json, torn") for m in (evaluate, edit, export_weights)),
  ],
)
def test_a_broken_run_directory_is_one_line(
  module, name, described, tmp_path, capsys
):
  file, change = BROKEN_RUNS[name]
  workdir = shutil.copytree(described, tmp_path / "run")
  text = change((workdir / file).read_text())
  if text is None:
    (workdir / file).unlink()
  else:
    (workdir / file).write_bytes(text.encode(errors="surrogateescape"))
  flags = ["--format=openai", f"--out={tmp_path}/x.pt"]
  flags = flags if module is export_weights else []
  refused(capsys, module, f"--workdir={workdir}", *flags)


@pytest.mark.parametrize("module", [sample, evaluate, edit])
def test_a_run_without_checkpoints_is_one_line(module, described, capsys):
  assert "checkpoint" in refused(capsys, module, f"--workdir={described}")


@pytest.mark.parametrize("module", [train, sample, evaluate, edit])
def test_a_file_is_no_run_directory(module, tmp_path, capsys):
  path = tmp_path / "file"
  path.write_text("not a folder")
  flags = TINY if module is train else ()
  refused(capsys, module, *flags, f"--workdir={path}")


def test_pictures_to_edit_that_are_none(described, tmp_path, capsys):
  Image.new("L", (8, 8)).save(tmp_path / "one.png")
  flags = (f"--workdir={described}", f"--images={tmp_path}/one.png")
  refused(capsys, edit, *flags)


@pytest.mark.parametrize(
  ("steps", "warmup", "fall", "end"),
  [
    (20, 20, None, None), (20, 5, 20, None), (20, 21, None, "num_steps=20"),
    (20, 21, 30, "num_steps=20"), (99, 21, 20, "optim.decay_steps=20"),
  ],
)  # fmt: skip
def test_a_warm_up_that_never_ends_is_said(steps, warmup, fall, end):
  config = configuration.make(
    num_steps=steps, optim={"warmup_steps": warmup, "decay_steps": fall}
  )
  said = checks.doubts(config, processes.schedule(config))
  assert len(said) == (end is not None)
  assert not said or f"warmup_steps={warmup} is beyond {end}, so" in said[0]


@pytest.mark.parametrize(
  ("schedule", "left"),
  [
    ({"name": "quadratic", "T": 21}, "93%"),
    ({"name": "linear", "T": 100, "scale": False}, "60%"),
    ({"name": "quadratic", "T": 1000}, None),
    ({"name": "flow"}, None),
    ({"name": "ve"}, None),
  ],
)
def test_a_schedule_that_ends_too_early_is_said(schedule, left):
  config = configuration.make(schedule=schedule)
  said = checks.doubts(config, processes.schedule(config))
  assert len(said) == (left is not None)
  assert not said or f"leaves {left} of the signal at T, but" in said[0]


@pytest.mark.parametrize(
  "changes", [{"time_mean": float("nan")}, {"ema": {"rates": (float("nan"),)}}]
)
def test_what_is_no_number_is_refused(changes):
  config = configuration.make(**changes)
  with pytest.raises(ValueError, match=r"(time_mean|ema.rates.0)=nan must be"):
    checks.check(config, processes.schedule(config))


@pytest.mark.parametrize("section", ["preview", "sampling"])
def test_steps_that_do_not_fit_are_named(section):
  config = configuration.make(schedule={"name": "cosine", "T": 2})
  config.preview.steps = config.sampling.steps = 2
  config[section].steps = 3
  with pytest.raises(ValueError, match=f"^{section}: 3 sampling steps"):
    checks.check(config, processes.schedule(config))


def test_a_number_that_nothing_looks_at_is_refused():
  config = configuration.make(time_std=2.0)
  with pytest.raises(
    ValueError, match="time_std=2.0 is of timesteps=.*uniform"
  ):
    processes.draw(config)
