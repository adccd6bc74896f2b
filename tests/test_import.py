"""Published weights to a run directory and back, as a user does it."""

import dataclasses
import json
import shutil
import tarfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from commands import BLIND, assert_one_error, command
from reference import PUBLISHED, assert_same

import diffusion_jax as dj
from diffusion_jax.models import presets
from diffusion_jax.pretrained import files
from diffusion_jax.runs import directory, networks, processes, restoring
from experiments import (
  evaluate,
  export_weights,
  import_weights,
  sample,
  train,
)
from experiments.configs import common

FOLDER = PUBLISHED / "diffusers_ddpm_unet"
# What the scheduler of google/ddpm-cifar10-32 says.
SCHEDULER = {
  "_class_name": "DDPMScheduler",
  "_diffusers_version": "0.1.1",
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "beta_start": 0.0001,
  "clip_sample": True,
  "num_train_timesteps": 1000,
  "trained_betas": None,
  "variance_type": "fixed_large",
}
DRAW = ("--num=2", "--steps=2")
PROCESS = ("schedule.name=linear", "schedule.T=1000", "target=eps",
           "variance=fixed_large")  # fmt: skip


def state_of(workdir):
  config, data = directory.load(workdir)
  shape = tuple(data["image_shape"])
  net = networks.network(config, shape, data["num_classes"])
  return net, restoring.restore(workdir, config, net, shape)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A folder such as those on the hub: everything at the top."""
  pytest.importorskip("safetensors")
  folder = tmp_path_factory.mktemp("models") / "ddpm"
  shutil.copytree(FOLDER, folder)
  files.write_json(folder / "scheduler_config.json", SCHEDULER)
  return folder


@pytest.fixture(scope="module")
def imported(model, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "ddpm"
  command(import_weights, f"--source={model}", f"--workdir={workdir}")
  return workdir


def test_an_imported_run_gives_the_published_outputs(imported):
  net, state = state_of(imported)
  numbers = np.load(FOLDER.with_suffix(".npz"))
  assert int(state.step) == 0 and list(state.ema) == ["0.9999"]
  for params in (state.params, state.ema["0.9999"]):
    out = jax.jit(net.apply)({"params": params}, numbers["x"], numbers["t"] + 1)
    np.testing.assert_allclose(out, numbers["out"], rtol=0, atol=1e-4)
  config, data = directory.load(imported)
  assert config.schedule.to_dict() == {
    "name": "linear", "T": 1000, "scale": False,
    "beta_start": 0.0001, "beta_end": 0.02,
  }  # fmt: skip
  assert (config.variance, config.target) == ("fixed_large", "eps")
  assert data["image_shape"] == [16, 16, 3]
  origin = directory.read_json(imported, "imported")
  assert origin["source"].endswith("ddpm") and origin["preset"] is None


def test_an_imported_run_is_sampled(imported, tmp_path):
  command(sample, f"--workdir={imported}", *DRAW, f"--out={tmp_path}/a.npz")
  chex.assert_shape(np.load(tmp_path / "a.npz")["images"], (2, 16, 16, 3))


def test_an_imported_run_goes_back_bit_for_bit(model, imported, tmp_path):
  out, again = tmp_path / "out", tmp_path / "again"
  command(
    export_weights,
    f"--workdir={imported}",
    "--format=diffusers",
    f"--out={out}",
  )
  assert_same(
    files.read(files.weights_file(out)), files.read(files.weights_file(model))
  )
  theirs = files.read_json(model / "config.json")
  for key, value in files.read_json(out / "config.json").items():
    assert theirs[key] == value
  scheduler = files.read_json(out / "scheduler_config.json")
  for key in SCHEDULER.keys() - {"_diffusers_version", "trained_betas"}:
    assert scheduler[key] == SCHEDULER[key]
  # And what was written is read to the same parameters.
  command(import_weights, f"--source={out}", f"--workdir={again}")
  chex.assert_trees_all_equal(state_of(again)[1], state_of(imported)[1])


def test_fine_tuning_needs_data_and_the_same_network(
  imported, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(imported, workdir)
  run = f"--workdir={workdir}"
  with pytest.raises(SystemExit) as stop:
    command(train, run)
  assert_one_error(stop, capsys, "no data are named; .*--config.data.name=")
  with pytest.raises(SystemExit) as stop:
    command(evaluate, run)
  assert_one_error(stop, capsys, "no data are named")
  data = ["--config.data.name=digits", "--config.data.channels=3"]
  with pytest.raises(SystemExit) as stop:
    command(train, run, *data, '--config.data.size="(8,)"'.replace('"', ""))
  assert_one_error(stop, capsys, r"image_shape is \[16, 16, 3\] there and \[8")
  with pytest.raises(SystemExit) as stop:
    command(train, run, *data, "--config.model.heads=2")
  assert_one_error(stop, capsys, "model.heads is 1 there and 2 here")
  with pytest.raises(SystemExit) as stop:
    command(train, run, *data, "--config.optim.warmup_stepz=1")
  assert_one_error(stop, capsys, 'Did you mean "warmup_steps"')


@pytest.mark.slow
def test_a_fine_tuned_run_is_one_like_any_other(imported, tmp_path, capsys):
  workdir = shutil.copytree(imported, tmp_path / "run")
  run = f"--workdir={workdir}"
  data = ["--config.data.name=digits", "--config.data.channels=3"]
  small = [
    "--config.batch_size=2",
    "--config.optim.lr=1e-5",
    "--config.model.dropout=0.1",
    "--config.preview.num=0",
  ]
  command(train, run, *data, *small, "--config.num_steps=2")
  # Two steps of 1e-5 / 5000 and 2e-5 / 5000: close to, but not, the import.
  old, new = state_of(imported)[1], state_of(workdir)[1]
  assert int(new.step) == 2
  moved = [
    float(abs(a - b).max())
    for a, b in zip(
      jax.tree.leaves(old.params), jax.tree.leaves(new.params), strict=True
    )
  ]
  assert 0 < max(moved) < 1e-6
  # From now on it is a run like any other: its data are known.
  assert directory.read_json(workdir, "data")["name"] == "digits"
  assert directory.read_json(workdir, "config")["model"]["dropout"] == 0.1
  with pytest.raises(SystemExit) as stop:
    command(train, run, "--config.optim.lr=1e-3")
  # --workdir alone starts from the run's configuration: nothing else differs.
  message = "configuration: optim.lr is 1e-05 there and 0.001 here. Change"
  assert_one_error(stop, capsys, message)


@pytest.mark.torch
def test_a_pipelines_folder_with_pytorch_files(tmp_path):
  # As google/ddpm-cifar10-32: no safetensors, attention by its old names.
  pytest.importorskip("torch")
  case = reference.notes("diffusers")["ddpm"]
  tensors = reference.weights(case["shapes"])
  old = {
    name.replace("to_q", "query")
    .replace("to_k", "key")
    .replace("to_v", "value")
    .replace("to_out.0", "proj_attn"): tensor
    for name, tensor in tensors.items()
  }
  source, workdir = tmp_path / "model", tmp_path / "run"
  files.write(source / "unet" / f"{files.WEIGHTS}.bin", old)
  files.write_json(source / "unet" / "config.json", case["config"])
  files.write_json(source / "scheduler" / "scheduler_config.json", SCHEDULER)
  command(import_weights, f"--source={source}", f"--workdir={workdir}")
  net, state = state_of(workdir)
  assert_same(dj.pretrained.to_diffusers(state.params, net), tensors)


def shrunk(name, **settings):
  """A preset with a network and images that a test can afford."""
  preset = presets.PRESETS[name]
  net = preset.net.clone(
    channels=32, multipliers=(1, 2), num_blocks=1, attention_levels=(1,),
    head_channels=16, **settings,
  )  # fmt: skip
  return dataclasses.replace(preset, net=net, size=16)


@pytest.fixture
def published(tmp_path, monkeypatch):
  """OpenAI's 64 x 64 ImageNet model and its classifier, made small."""
  pytest.importorskip("torch")
  for name, file, settings in (
    ("adm-imagenet64", "64x64_diffusion.pt", {"num_classes": 10}),
    ("adm-classifier64", "64x64_classifier.pt", {"num_labels": 10}),
  ):
    preset = shrunk(name, **settings)
    monkeypatch.setitem(presets.PRESETS, name, preset)
    x, one = np.zeros((1, 16, 16, 3)), np.ones(1, int)
    cond = None if preset.net.num_classes is None else {"y": one}
    params = jax.jit(preset.net.init)(jax.random.key(0), x, one, cond)["params"]
    state_dict = dj.pretrained.to_openai(params, preset.net)
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    files.write(tmp_path / file, reference.weights(shapes))
  return tmp_path


@pytest.mark.slow
@pytest.mark.torch
def test_openais_model_of_a_preset(published, tmp_path, capsys):
  source, run = published / "64x64_diffusion.pt", tmp_path / "run"
  flags = ("--preset=adm-imagenet64", f"--workdir={run}")
  command(import_weights, f"--source={source}", *flags)
  config, data = directory.load(run)
  assert config.model.qkv_order == "qkv" and config.schedule.name == "cosine"
  assert config.variance == "learned_range" and config.sampling.steps == 250
  assert (data["num_classes"], data["image_shape"]) == (10, [16, 16, 3])
  command(sample, f"--workdir={run}", *DRAW)
  out = tmp_path / "out.pt"
  command(export_weights, f"--workdir={run}", "--format=openai", f"--out={out}")
  assert_same(files.read(out), files.read(source))
  flags = files.read_json(tmp_path / "out.json")
  expected = {
    "use_new_attention_order": True, "num_head_channels": 16,
    "attention_resolutions": "8", "class_cond": True, "learn_sigma": True,
    "noise_schedule": "cosine", "diffusion_steps": 1000,
    "rescale_timesteps": False, "resblock_updown": True,
  }  # fmt: skip
  assert flags.items() >= expected.items()
  # diffusers has this network too.
  folder, again = tmp_path / "folder", tmp_path / "again"
  command(
    export_weights, f"--workdir={run}", "--format=diffusers", f"--out={folder}"
  )
  flags = ("--preset=adm-imagenet64", f"--workdir={again}")
  command(import_weights, f"--source={folder}", *flags)
  chex.assert_trees_all_equal(state_of(again)[1], state_of(run)[1])


@pytest.mark.torch
def test_openais_classifier(published, tmp_path, capsys):
  source, run = published / "64x64_classifier.pt", tmp_path / "run"
  flags = ("--preset=adm-classifier64", f"--workdir={run}")
  command(import_weights, f"--source={source}", *flags)
  config, data = directory.load(run)
  assert config.kind == "classifier" and config.model.num_labels == 10
  assert data["num_classes"] == 10
  net, state = state_of(run)
  x = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
  logits = jax.jit(net.apply)({"params": state.params}, x, np.array([1, 1000]))
  chex.assert_shape(logits, (2, 10))
  chex.assert_tree_all_finite(logits)
  out = tmp_path / "out.pt"
  command(export_weights, f"--workdir={run}", "--format=openai", f"--out={out}")
  assert_same(files.read(out), files.read(source))
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    command(sample, f"--workdir={run}")
  assert_one_error(stop, capsys, "a classifier, which draws no images: pass it")


@pytest.mark.torch
def test_weights_of_ones_own_with_a_configuration_file(tmp_path):
  pytest.importorskip("torch")
  case = reference.notes("networks")["improved"]
  settings = common.settings(reference.network(case))
  (tmp_path / "mine.py").write_text(
    "from experiments.configs import common\n"
    "def get_config(variant=''):\n"
    f"  model = {settings!r}\n"
    "  return common.make(model=model, data={'size': (16,)}, "
    "schedule={'name': 'cosine'}, variance='learned_range', "
    "loss={'name': 'hybrid'})\n"
  )
  source, run = tmp_path / "mine.pt", tmp_path / "run"
  files.write(source, reference.weights(case["shapes"]))
  flags = (f"--config={tmp_path / 'mine.py'}", f"--workdir={run}")
  command(import_weights, f"--source={source}", *flags)
  net, state = state_of(run)
  assert_same(
    dj.pretrained.to_openai(state.params, net),
    reference.weights(case["shapes"]),
  )


def test_a_trained_run_that_others_cannot_run_is_refused(tmp_path, capsys):
  with tarfile.open(reference.DATA / "run.tar.xz") as archive:
    archive.extractall(tmp_path, filter="data")
  run = tmp_path / "run"
  config = directory.read_json(run, "config")
  config["model"]["groups"] = None
  (run / "config.json").write_text(json.dumps(config))
  for kind, out, message in (
    ("diffusers", "x", "model.groups=None has no counterpart in UNet2DModel"),
    ("openai", "x.pt", "embedding='sin_cos'; in OpenAI's code"),
    ("openai", "x", "must end in .pt"),
    ("onnx", "x", "--format 'onnx' is not one of diffusers, openai"),
    ("openai", "run", "run is there already"),
  ):
    flags = (f"--format={kind}", f"--out={tmp_path / out}")
    with pytest.raises(SystemExit) as stop:
      command(export_weights, f"--workdir={run}", *flags)
    assert_one_error(stop, capsys, message)
    assert kind == "onnx" or out == "run" or not (tmp_path / out).exists()
  with pytest.raises(SystemExit) as stop:
    command(export_weights, f"--workdir={run}")
  assert_one_error(stop, capsys, "--format is missing")


def edited(name):
  """Makes a change of one tensor of the weights."""

  def change(folder):
    tensors = files.read(files.weights_file(folder))
    if name == "missing":
      del tensors["conv_out.bias"]
    elif name == "extra":
      tensors["conv_out.scale"] = tensors["conv_out.bias"]
    elif name == "first":
      del tensors["conv_in.weight"]
    elif name == "foreign":
      tensors = {"layers.0.weight": tensors["conv_out.bias"]}
    else:
      tensors["conv_out.weight"] = tensors["conv_out.weight"][:2]
    files.write(files.weights_file(folder), tensors)

  return change


def truncated(folder):
  path = files.weights_file(folder)
  path.write_bytes(path.read_bytes()[:-100])


def setting(name="config.json", **changes):
  def change(folder):
    content = files.read_json(folder / name)
    files.write_json(folder / name, content | changes)

  return change


def without(name):
  return lambda folder: (folder / name).unlink()


BAD_IMPORTS = {
  "missing tensor": (edited("missing"), [], "missing .*: conv_out.bias$"),
  "extra tensor": (edited("extra"), [], "unknown .*: conv_out.scale$"),
  "no first tensor": (edited("first"), [], "missing .*: conv_in.weight$"),
  "foreign names": (edited("foreign"), [], "no known format.*layers.0.weight"),
  "wrong shape": (
    edited("shape"),
    [],
    r"conv_out.weight is \(2, 32, 3, 3\) .*has \(3, 32, 3, 3\)$",
  ),
  "truncated file": (truncated, [], "safetensors cannot be read"),
  "unknown setting": (setting(depth=3), [], "unknown settings: depth$"),
  "unknown block": (
    setting(down_block_types=["DownBlock2D", "SkipDownBlock2D"]),
    [],
    "'SkipDownBlock2D' is not one of",
  ),
  "channels": (setting(in_channels=1), [], "in_channels=1 in .* has 3"),
  "size": (setting(sample_size=None), [], "how large .*--config.data.size"),
  "size of levels": (
    setting(sample_size=15),
    [],
    "15 x 15 must be multiples of 2",
  ),
  "unknown process": (
    setting("scheduler_config.json", beta_schedule="sigmoid"),
    [],
    "beta_schedule='sigmoid' is not one of",
  ),
  "no process": (
    without("scheduler_config.json"),
    [],
    "does not say schedule.name, schedule.T, target, variance: pass --preset",
  ),
  "half a process": (
    without("scheduler_config.json"),
    [f"--config.{flag}" for flag in PROCESS[:3]],
    "does not say variance: pass --preset=NAME, or --config.variance=...$",
  ),
  "no weights": (
    without("diffusion_pytorch_model.safetensors"),
    [],
    "has no diffusion_pytorch_model.safetensors, nor .bin",
  ),
  "no settings": (without("config.json"), [], "has no config.json"),
  "unknown preset": ([], ["--preset=ddpm"], "--preset 'ddpm' is not one of"),
  "another preset": (
    [],
    ["--preset=ddpm-cifar10"],
    "ddpm-cifar10 has model.channels=128, the source 32",
  ),
  "an upsampler": (
    [],
    ["--preset=adm-upsample256"],
    "adm-upsample256 has model.channels=192, the source 32",
  ),
  "a classifier": ([], ["--preset=adm-classifier64"], "the weights are not$"),
  "preset and config": (
    [],
    ["--preset=ddpm-cifar10", "--config=configs/cifar.py"],
    "exclude each other",
  ),
  "unknown key": ([], ["--config.lr=1"], 'unknown configuration key "lr"'),
  "unknown flag": ([], ["--frmat=x"], "Unknown command line flag 'frmat'"),
  "bad value": ([], ["--config.variance=big"], "'big' is not one of fixed"),
  "learned variance": (
    [],
    ["--config.variance=learned_range", "--config.loss.name=hybrid"],
    r"conv_out.weight is \(3, .* has \(6, ",
  ),
}


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_a_bad_import_is_one_line_and_status_2(name, model, tmp_path, capsys):
  change, flags, message = BAD_IMPORTS[name]
  source, workdir = tmp_path / "model", tmp_path / "run"
  shutil.copytree(model, source)
  if change:
    change(source)
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    command(
      import_weights, f"--source={source}", f"--workdir={workdir}", *flags
    )
  assert_one_error(stop, capsys, message)
  assert not workdir.exists()


def test_what_a_source_does_not_say_is_taken_from_the_command(model, tmp_path):
  workdir = tmp_path / "run"
  flags = [f"--config.{flag}" for flag in PROCESS]
  command(import_weights, f"--source={FOLDER}", f"--workdir={workdir}", *flags)
  config, _ = directory.load(workdir)
  assert config.schedule.T == 1000 and config.variance == "fixed_large"
  assert processes.schedule(config).T == 1000


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--source is missing"),
    (["--source=x"], "--workdir is missing"),
    (["--source=no.pt", "--workdir={tmp}/run"], "no.pt is no file or folder"),
    (
      ["--source=x", "--workdir={tmp}"],
      "is not empty.*; choose another --workdir",
    ),
    (["--source={tmp}/a.pt", "--workdir={tmp}/run"], "--preset=NAME, one of d"),
  ],
)
def test_a_bad_source_is_one_line_and_status_2(
  flags, message, tmp_path, capsys
):
  (tmp_path / "a.pt").touch()
  flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
  with pytest.raises(SystemExit) as stop:
    command(import_weights, *flags)
  assert_one_error(stop, capsys, message)


@pytest.mark.parametrize("module", [import_weights, export_weights])
def test_help_names_the_flags(module, capsys):
  with pytest.raises(SystemExit) as stop:
    command(module, "--help")
  assert stop.value.code == 0
  assert "--workdir: run directory" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.torch
def test_diffusers_loads_what_is_exported(imported, tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  out = tmp_path / "out"
  command(
    export_weights,
    f"--workdir={imported}",
    "--format=diffusers",
    f"--out={out}",
  )
  unet = diffusers.UNet2DModel.from_pretrained(out).eval()
  numbers = np.load(FOLDER.with_suffix(".npz"))
  with torch.no_grad():
    x = torch.tensor(numbers["x"]).permute(0, 3, 1, 2)
    y = unet(x, torch.tensor(numbers["t"])).sample.permute(0, 2, 3, 1)
  np.testing.assert_allclose(y, numbers["out"], rtol=0, atol=1e-5)
  scheduler = diffusers.DDPMScheduler.from_pretrained(out)
  config, _ = directory.load(imported)
  np.testing.assert_allclose(
    np.sqrt(scheduler.alphas_cumprod),
    processes.schedule(config).alpha[1:],
    rtol=1e-4,  # theirs are products of float32
  )
  assert scheduler.config.variance_type == "fixed_large"
  pipeline = diffusers.DDPMPipeline.from_pretrained(out)
  images = pipeline(num_inference_steps=2, output_type="np").images
  assert images.shape == (1, 16, 16, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.torch
def test_diffusers_defaults_are_known():
  diffusers = pytest.importorskip("diffusers")
  config = diffusers.UNet2DModel(
    block_out_channels=(32, 32, 32, 32)
  ).config  # fmt: skip
  known = json.loads(json.dumps(dj.pretrained.diffusers_config.DEFAULTS))
  known["block_out_channels"] = [32, 32, 32, 32]
  theirs = json.loads(json.dumps(dict(config)))
  assert {k: v for k, v in theirs.items() if k[0] != "_"} == known
  config = dict(diffusers.DDPMScheduler().config)
  for key, value in dj.pretrained.diffusers_config.PROCESS.items():
    if key != "_class_name":
      assert config[key] == value


@pytest.mark.slow
@pytest.mark.torch
def test_openais_files_guide_and_enlarge(tmp_path):
  # The README's lines, with files of the same layout made here.
  pytest.importorskip("torch")
  drawn = {}
  small = "--config.data.size=(4,)"
  low_res = ("--config.low_res.size=(4,)",)
  theirs = [
    f"--config.model.{setting}"
    for setting in (
      "channels=32", "embedding=cos_sin", "groups=32", "epsilon=1e-5",
      "padding=symmetric", "qkv_order=heads",
    )
  ]  # fmt: skip
  made = {
    "model": (*BLIND, small),
    "classifier": ("--config=configs/classifier.py:smoke", small),
    "upsampler": (*BLIND, *low_res),
  }
  for name, flags in made.items():
    own, file = tmp_path / "own" / name, tmp_path / f"{name}.pt"
    flags = (*flags, *theirs)
    command(train, *flags, f"--workdir={own}", "--config.num_steps=2")
    command(
      export_weights, f"--workdir={own}", "--format=openai", "--ema=raw",
      f"--out={file}",
    )  # fmt: skip
    size = [] if name != "upsampler" else ["--config.data.size=(8,)"]
    command(
      import_weights, *flags, *size, f"--source={file}",
      f"--workdir={tmp_path / 'imported' / name}",
    )  # fmt: skip
  for kind in ("own", "imported"):
    folder = tmp_path / kind
    out = tmp_path / f"{kind}.npz"
    command(
      sample,
      f"--workdir={folder / 'model'}",
      f"--classifier={folder / 'classifier'}",
      f"--upsampler={folder / 'upsampler'}",
      "--classes=3,5",
      "--ema=raw",
      "--num=4",
      f"--out={out}",
    )
    drawn[kind] = np.load(out)["images"]
  chex.assert_shape(drawn["own"], (4, 8, 8, 1))
  assert np.abs(drawn["own"].astype(int) - drawn["imported"]).max() <= 1


def test_an_import_that_was_killed_is_made_again(tmp_path, monkeypatch):
  workdir, config = tmp_path / "run", common.make(data={"name": ""})
  data = import_weights.describe(config, (8, 8, 1), "mine")
  write = lambda value: import_weights.write(
    workdir, config, data, {"w": np.full(3, value, np.float32)}, {}
  )
  with monkeypatch.context() as killed:
    killed.setattr(directory, "describe_run", None)
    with pytest.raises(TypeError):
      write(1)
  assert not directory.is_run(workdir)
  import_weights.check_empty(workdir)
  write(2)
  assert directory.load(workdir)[1]["image_shape"] == [8, 8, 1]
  with dj.checkpoint.Checkpoints(workdir / "checkpoints") as kept:
    state = networks.state(
      config, {"w": jnp.zeros(3)}, networks.optimizer(config)
    )
    state = kept.restore(jax.eval_shape(lambda: state))
  np.testing.assert_array_equal(state.params["w"], 2)
  names = {path.name for path in workdir.iterdir()}
  assert ".import" not in names and "imported.json" in names
