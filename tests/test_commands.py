"""The commands, run as a user runs them, in this process to save start-up."""

import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from commands import (
  BLIND,
  TINY,
  assert_one_error,
  command,
  params_of,
  refused,
  rows,
)
from PIL import Image
from prepared import write_cifar

from diffusion_jax.models import presets
from diffusion_jax.runs import (
  checks,
  directory,
  networks,
  planning,
  processes,
)
from diffusion_jax.runs.training import loop
from experiments import (
  evaluate,
  presets as list_presets,
  sample,
  train,
)
from experiments.configs import common


@pytest.fixture
def trained(zoo, tmp_path, few_numbers):
  """A run of 8 steps, uninterrupted."""
  return zoo.copy("shown", tmp_path / "tiny")


@pytest.fixture
def few(zoo, tmp_path, few_numbers):
  """The same, without pictures."""
  return zoo.copy("few", tmp_path / "few")


def test_a_run_leaves_what_it_promises(trained):
  samples = {p.name for p in (trained / "samples").iterdir()}
  assert samples >= {
    "denoising.gif",
    "loss.png",
    "step0000004_raw.png",
    "step0000008_ema0.995.png",
  }
  logged = rows(trained / "metrics.jsonl")
  assert [row["step"] for row in logged] == [2, 4, 6, 8]
  assert logged[-1]["images"] == 8 * 32
  for row in logged:
    chex.assert_tree_all_finite(row)
    assert {"loss", "grad_norm", "param_norm", "images_per_s"} <= row.keys()
    assert any(key.startswith("loss_q") for key in row)
  previews = rows(trained / "previews.jsonl")
  assert [(row["step"], row["of"]) for row in previews] == [
    (4, "raw"), (4, "ema0.995"), (8, "raw"), (8, "ema0.995"),
  ]  # fmt: skip
  assert "distance" not in previews[2] and 0 < previews[3]["distance"] < 1
  assert directory.read_json(trained, "config")["model"]["channels"] == 8
  data = directory.read_json(trained, "data")
  assert data["image_shape"] == [8, 8, 1] and data["examples"] == 1797
  assert "jax" in directory.read_json(trained, "versions")
  assert list((trained / "tensorboard").glob("events.*"))
  with Image.open(trained / "samples" / "denoising.gif") as gif:
    assert 2 <= gif.n_frames <= 3  # equal frames are stored once


def test_a_tree_that_is_not_installed_has_no_version(monkeypatch):
  monkeypatch.setattr(directory, "PACKAGES", ("numpy", "no-such-package"))
  found = directory.versions()
  assert found["numpy"] == np.__version__
  assert found["no-such-package"] == "not installed"


def test_a_run_that_is_not_there_does_not_go_on(tmp_path, capsys):
  flags = (f"--workdir={tmp_path / 'typo'}", "--config.num_steps=9")
  assert "no run in" in refused(capsys, train, *flags)
  assert not (tmp_path / "typo").exists()


def test_an_interrupted_run_ends_with_the_same_bits(few, tmp_path, capsys):
  workdir = tmp_path / "cut"
  flags = (*BLIND, f"--workdir={workdir}")
  command(train, *flags, "--config.num_steps=4")
  # As if the first part had been killed after logging beyond its checkpoint.
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 6, "loss": 123}\n{"step": 7, "lo')
  command(train, *flags, "--config.num_steps=8")
  assert "the run continues after step 4 of 8 steps" in capsys.readouterr().out
  chex.assert_trees_all_equal(params_of(workdir), params_of(few))
  cut, whole = (
    [(row["step"], row["loss"]) for row in rows(folder / "metrics.jsonl")]
    for folder in (workdir, few)
  )
  assert cut == whole


def test_a_complete_run_says_so(few, capsys):
  command(train, *BLIND, f"--workdir={few}", "--config.num_steps=8")
  out = capsys.readouterr().out
  assert "complete after 8 steps" in out
  assert f"everything is written to {few}" in out.splitlines()
  assert out.splitlines()[-1].endswith(f"experiments.sample --workdir={few}")


def test_samples_as_a_grid(trained, capsys):
  command(sample, f"--workdir={trained}", "--num=4", "--seed=3")
  assert (trained / "samples" / "sample_3.png").exists()
  assert "steps each, average 0.995\n" in capsys.readouterr().out


def test_samples_as_array_and_folder(few, tmp_path):
  flags = (f"--workdir={few}", "--num=5", "--seed=3")
  command(sample, *flags, f"--out={tmp_path}/a.npz")
  images = np.load(tmp_path / "a.npz")["images"]
  chex.assert_shape(images, (5, 8, 8, 1))
  assert images.dtype == np.uint8

  folder = tmp_path / "pictures"
  # An image does not depend on its batch.
  command(sample, *flags, "--batch=2", f"--out={folder}")
  assert len(list(folder.iterdir())) == 5
  for k in range(5):
    with Image.open(folder / f"{k:06}.png") as picture:
      difference = np.asarray(picture, int) - images[k, ..., 0]
    assert np.abs(difference).max() <= 1

  command(sample, *flags[:2], f"--out={tmp_path}/b.npz")
  assert (np.load(tmp_path / "b.npz")["images"] != images).any()


def test_samples_that_cannot_be_written_are_kept_elsewhere(
  few, tmp_path, capsys, monkeypatch
):
  def full(*_):
    raise OSError(28, "No space left on device")

  def draw(planned):  # of two classes
    return np.zeros((planned.num, *planned.image_shape))

  monkeypatch.setattr(sample.drawing, "draw", draw)
  monkeypatch.setattr(planning.Plan, "classes", (3, 8))
  monkeypatch.setattr(sample.dj.images, "save_png", full)
  monkeypatch.setattr(sample.tempfile, "tempdir", str(tmp_path))
  with pytest.raises(SystemExit) as stop:
    command(sample, f"--workdir={few}", "--num=2")
  assert stop.value.code == 1
  assert (
    "No space left on device; the samples are in" in capsys.readouterr().err
  )
  (kept,) = tmp_path.glob("samples-*/samples.npz")
  with np.load(kept) as arrays:
    chex.assert_shape(arrays["images"], (2, 8, 8, 1))
    assert arrays["labels"].tolist() == [3, 8]


def test_evaluate_reports_and_stores_its_figure(trained, capsys):
  command(evaluate, f"--workdir={trained}", "--num=32", "--steps=2")
  out = capsys.readouterr().out
  assert "Frechet distance in pixel space, 32 samples to 1797" in out
  (row,) = rows(trained / "evaluation.jsonl")
  # Two halves of the data are far closer than an untrained network's samples.
  assert 0.2 < row["frechet_halves"] < 0.4 < row["frechet"]
  assert sum(row["classes"].values()) == 32


def test_a_learned_variance_trains_resumes_and_is_measured(
  zoo, few_numbers, tmp_path, capsys
):
  # L_vlb with steps drawn by past losses, whose history is in the checkpoint.
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  flags = (
    *BLIND,
    "--config.variance=learned_range",
    "--config.loss.name=vlb",
    "--config.timesteps=importance",
    "--config.schedule.T=12",
  )
  command(train, *flags, f"--workdir={whole}", "--config.num_steps=16")
  zoo.cut(shutil.copytree(whole, cut), step=8)
  command(train, f"--workdir={cut}")
  assert "continues after step 8 of 16" in capsys.readouterr().out
  chex.assert_trees_all_equal(params_of(cut), params_of(whole))

  capsys.readouterr()
  command(evaluate, f"--workdir={cut}", "--metrics=bpd", "--num=70")
  assert "bound of 70 images, 12 terms each" in capsys.readouterr().out
  (row,) = rows(cut / "evaluation.jsonl")
  assert (row["images"], row["terms"], row["step"]) == (70, 12, 16)
  assert 0 < row["bpd_standard_error"] < 1
  assert row["bpd"] > row["bpd_decoder"] > 0
  # How many at a time changes nothing.
  command(
    evaluate, f"--workdir={cut}", "--metrics=bpd", "--num=70", "--batch=16"
  )
  again = rows(cut / "evaluation.jsonl")[-1]
  np.testing.assert_allclose(again["bpd"], row["bpd"], rtol=1e-5)


@pytest.fixture
def conditional(zoo, tmp_path, few_numbers):
  """A run whose network is told the digit, or sometimes not."""
  return zoo.copy("conditional", tmp_path / "run")


def test_classes_and_guidance_decide_what_is_drawn(conditional, tmp_path):
  def draw(name, *flags):
    out = tmp_path / f"{name}.npz"
    command(
      sample, f"--workdir={conditional}", "--num=4", *flags, f"--out={out}"
    )
    return np.load(out)["images"]

  default = draw("default")
  np.testing.assert_array_equal(draw("same", "--guidance=2"), default)
  np.testing.assert_array_equal(draw("turn", "--classes=0,1,2,3"), default)
  strong, threes = draw("strong", "--guidance=9"), draw("3", "--classes=3")
  assert (strong != default).any()
  # Image 3 is a three either way; the others were of other classes.
  np.testing.assert_array_equal(threes[3], default[3])
  assert (threes[:3] != default[:3]).any()


def test_agreement_is_measured(conditional, capsys):
  flags = ("--metrics=agreement", "--num=20", "--steps=2", "--guidance=3")
  command(evaluate, f"--workdir={conditional}", *flags)
  assert "of 20 samples are of the class asked for" in capsys.readouterr().out
  (row,) = rows(conditional / "evaluation.jsonl")
  assert row["agreement_accuracy"] > 0.95
  assert 0 <= row["agreement"] < 0.6  # an untrained network's guesses
  assert row["guidance"] == 3


def test_samples_in_a_file_agree_as_those_of_the_run_do(
  conditional, tmp_path, capsys
):
  out, flags = tmp_path / "out.npz", ("--num=20", "--steps=2", "--guidance=3")
  command(sample, f"--workdir={conditional}", *flags, f"--out={out}")
  labels = np.load(out)["labels"]
  np.testing.assert_array_equal(labels, np.arange(20) % len(set(labels)))
  capsys.readouterr()

  def agreement(*given):
    command(evaluate, "--metrics=agreement", *given)
    lines = capsys.readouterr().out.splitlines()
    return next(line for line in lines if "of the class asked for" in line)

  drawn = agreement(f"--workdir={conditional}", *flags)
  assert drawn == agreement(f"--samples={out}", "--reference=digits")


def test_pictures_in_a_folder_train_a_conditional_model(few_numbers, tmp_path):
  rng = np.random.default_rng(0)
  for name in ("cats", "dogs"):
    (tmp_path / "data" / name).mkdir(parents=True)
    for k in range(8):
      picture = rng.integers(0, 256, (14, 10, 3), np.uint8)
      Image.fromarray(picture).save(tmp_path / "data" / name / f"{k}.png")
  workdir = tmp_path / "run"
  command(
    train,
    *BLIND,
    f"--workdir={workdir}",
    f"--config.data.name={tmp_path / 'data'}",
    "--config.data.size=(12, 8)",
    "--config.model.num_classes=2",
    "--config.flip=True",
    "--config.batch_size=4",
    "--config.micro_batches=2",
    "--config.num_steps=2",
  )
  data = directory.read_json(workdir, "data")
  assert data["image_shape"] == [12, 8, 3]
  assert data["class_names"] == ["cats", "dogs"]
  command(sample, f"--workdir={workdir}", "--num=2", f"--out={tmp_path}/a.npz")
  chex.assert_shape(np.load(tmp_path / "a.npz")["images"], (2, 12, 8, 3))


def test_cifar_trains_from_prepared_tfds_data(few_numbers, tmp_path):
  write_cifar(tmp_path / "tfds", "array_record")
  workdir = tmp_path / "cifar"
  command(
    train,
    "--config=configs/cifar.py",
    f"--workdir={workdir}",
    f"--config.data.data_dir={tmp_path / 'tfds'}",
    "--config.batch_size=8",
    "--config.num_steps=1",
    "--config.preview.num=2",
    "--config.preview.steps=2",
  )
  assert (workdir / "checkpoints" / "1").is_dir()
  assert directory.read_json(workdir, "data")["name"] == "cifar10/3.0.2 train"


def test_a_loss_that_is_not_finite_stops_the_run(few_numbers, tmp_path, capsys):
  workdir = tmp_path / "run"
  flags = (
    *BLIND,
    f"--workdir={workdir}",
    "--config.optim.lr=1e30",
    "--config.optim.warmup_steps=1",  # the first update has rate 0
    "--config.every.checkpoint=1",
    "--config.num_steps=6",
  )
  with pytest.raises(SystemExit) as stop:
    command(train, *flags)
  assert stop.value.code == 1
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: step 2 is not finite")
  assert "the checkpoint of step 1" in error
  assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["1"]
  chex.assert_tree_all_finite(params_of(workdir))


def broken_picture(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "good.png").write_bytes(b"")
  Image.new("L", (8, 8)).save(tmp_path / "data" / "good.png")
  (tmp_path / "data" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
  return tmp_path / "data"


def empty_folder(tmp_path):
  (tmp_path / "empty").mkdir()
  return tmp_path / "empty"


BAD_TRAINING = {
  "unknown key": (
    ["--config.optim.lrr=1"],
    'unknown configuration key lrr Did you mean "lr"',
  ),
  "unknown section": (["--config.optin.lr=1"], 'Did you mean "optim"'),
  "bad value": (["--config.optim.lr=fast"], "could not convert .* 'fast'"),
  "unknown flag": (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
  "stray word": (["digits"], "'digits' is not a flag"),
  "unknown config": (["--config=configs/no.py"], "no configuration file .*dig"),
  "unknown variant": (["--config=configs/digits.py:big"], "variant 'big'; .*s"),
  "unknown data": (["--config.data.name=digit"], "digit.*digits"),
  "unknown schedule": (["--config.schedule.name=cos"], "'cos' is not one of l"),
  "bad schedule": (["--config.schedule.T=0"], "T=0 must be a whole number"),
  "unknown target": (["--config.target=noise"], "'noise' is not one of eps"),
  "unknown variance": (["--config.variance=big"], "'big' is not one of fixed"),
  "unknown weight": (["--config.loss.weight=snr"], "'snr' is not one of none"),
  "unknown loss": (["--config.loss.name=l1"], "'l1' is not one of simple"),
  "unknown timesteps": (
    ["--config.timesteps=even"],
    "'even' is not one of uniform, antithetic, importance",
  ),
  "hybrid loss of a fixed variance": (
    ["--config.loss.name=hybrid"],
    "'hybrid' learns the variance; variance='fixed_small' is fixed",
  ),
  "simple loss of a learned variance": (
    ["--config.variance=learned"],
    "'learned' is learned, which the simple loss does not",
  ),
  "weight of a bound": (
    ["--config.loss.name=vlb", "--config.loss.weight=p2"],
    "loss 'vlb' has no weight; 'p2' was given",
  ),
  "unknown sampler": (
    ["--config.preview.sampler=dpm"],
    "'dpm' is not one of ancestral",
  ),
  "too many sampling steps": (
    ["--config.sampling.steps=1001"],
    "error: sampling: 1001 sampling steps must be in 1..T=1000",
  ),
  "size": (
    ["--config.model.multipliers=(1, 1, 1, 1, 1)"],
    "8 x 8 must be multiples of 16: the nearest is 16 x 16",
  ),
  "attention level": (
    ["--config.model.attention_levels=(4,)"],
    "attention_levels has 4; the levels are 0..0",
  ),
  "classes": (
    ["--config.model.num_classes=7"],
    "num_classes=7, but the data have 10 classes",
  ),
  "batch": (
    ["--config.batch_size=30", "--config.micro_batches=4"],
    "batch_size=30 must be a multiple of 4 .* the nearest are 28 and 32",
  ),
  "no steps": (["--config.num_steps=0"], "num_steps=0 must be at least 1"),
  "no interval": (["--config.every.log=0"], "every.log=0 must be at least 1"),
  "seed": (["--config.seed=-1"], "seed=-1 must be in 0..4294967295"),
  "large seed": (["--config.seed=4294967296"], "must be in 0..4294967295"),
  "beyond the decay": (
    ["--config.num_steps=21"],
    "num_steps=21 goes beyond optim.decay_steps=20, .*decay_steps=21 as well",
  ),
  "ema": (["--config.ema.rates=(1.5,)"], "EMA rate 1.5 must be in"),
  "broken picture": (
    ["--config.data.name={broken_picture}"],
    r"bad\.png.*skip_broken",
  ),
  "empty folder": (
    ["--config.data.name={empty_folder}"],
    "no pictures in .*empty",
  ),
  "not a run": (["--workdir={empty_folder}/.."], "not empty and not a run"),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training_input_is_one_line_and_status_2(
  name, tmp_path, capsys, monkeypatch
):
  flags, message = BAD_TRAINING[name]
  flags = [
    flag.replace("{empty_folder}", str(empty_folder(tmp_path)))
    if "{empty_folder}" in flag
    else flag.replace("{broken_picture}", str(broken_picture(tmp_path)))
    if "{broken_picture}" in flag
    else flag
    for flag in flags
  ]

  def compiled(*_, **__):
    raise AssertionError("something was compiled before the error")

  monkeypatch.setattr(loop, "train", compiled)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    command(train, *TINY, *flags)
  assert_one_error(stop, capsys, message)


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.optim.lr=0.5", "optim.lr is 0.001 there and 0.5 here"),
    ("--config.model.channels=16", "model.channels is 8 there and 16 here"),
    ("--config.seed=1", "seed is 0 there and 1 here"),
  ],
)
def test_a_config_that_does_not_fit_the_run_is_refused(
  few, capsys, flag, message
):
  lr = directory.read_json(few, "config")["optim"]["lr"]
  message = message.replace("0.001", str(lr))
  with pytest.raises(SystemExit) as stop:
    command(train, *BLIND, f"--workdir={few}", flag)
  assert_one_error(stop, capsys, message)


BAD_SAMPLING = {
  "no workdir": ([], "--workdir is missing"),
  "missing run": (["--workdir={run}x"], "no run directory .*; there is .*few"),
  "foreign folder": (["--workdir={run}/checkpoints"], "has no config.json"),
  "no average": (["--workdir={run}", "--ema=0.5"], "'0.5' is not one of raw"),
  "no checkpoint": (
    ["--workdir={run}", "--checkpoint=5"],
    "no checkpoint of step 5 in .*; there are 4, 8",
  ),
  "sampler": (["--workdir={run}", "--sampler=x"], "'x' is not one of ancestr"),
  "steps": (["--workdir={run}", "--steps=2000"], "must be in 1..T=1000"),
  "seed": (["--workdir={run}", f"--seed={2**70}"], "4294967295"),
  "no images": (["--workdir={run}", "--num=0"], "--num=0: 0 is not a pos"),
  "format": (["--workdir={run}", "--out=a.jpg"], "must end in .png"),
  "full folder": (
    ["--workdir={run}", "--out={run}/checkpoints"],
    "there already",
  ),
  "guidance": (["--workdir={run}", "--guidance=2"], "without label_dropout"),
  "classes": (["--workdir={run}", "--classes=3"], "is unconditional"),
  "eta": (
    ["--workdir={run}", "--sampler=unipc", "--eta=1"],
    "has no eta; ddim",
  ),
  "nan": (["--workdir={run}", "--guidance=nan"], "nan must be a finite number"),
  "inf": (["--workdir={run}", "--guidance=-inf"], "inf must be a finite num"),
  "nan eta": (["--workdir={run}", "--eta=nan"], "--eta=nan must be a finite"),
  "spacing": (["--workdir={run}", "--spacing=odd"], "'odd' is not one of even"),
  "stride": (["--workdir={run}", "--spacing=ddim400"], "nearest is ddim334"),
  "torn config": (["--workdir={torn}"], "config.json is not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_SAMPLING)
def test_bad_sampling_input_is_one_line_and_status_2(
  name, few, tmp_path, capsys
):
  flags, message = BAD_SAMPLING[name]
  (tmp_path / "config.json").write_text('{"seed": ')
  flags = [
    f.replace("{run}", str(few)).replace("{torn}", str(tmp_path)) for f in flags
  ]
  with pytest.raises(SystemExit) as stop:
    command(sample, *flags)
  assert_one_error(stop, capsys, message)


@pytest.mark.parametrize(
  "errors", [sample.cli.user_errors, sample.cli.system_errors]
)
def test_pictures_of_nan_are_one_line_and_status_1(errors, tmp_path, capsys):
  out = tmp_path / "a.png"
  with pytest.raises(SystemExit) as stop, errors():
    sample.save(out, np.full((1, 8, 8, 1), np.nan))
  assert stop.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert "64 of the 64 values of pictures are NaN" in line
  assert not out.exists()


def test_presets_are_listed_with_their_parameters(capsys, monkeypatch):
  # That the counts are the published ones is asserted in test_presets.py.
  monkeypatch.setattr(presets, "count_params", lambda preset: preset.params)
  command(list_presets)
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines)) <= 100
  row = next(line for line in lines if line.startswith("adm-imagenet64 "))
  assert "295,904,454" in row and "cosine 1000" in row


def test_help_names_every_flag(capsys):
  with pytest.raises(SystemExit) as stop:
    command(train, "--help")
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert "--config" in out and "--workdir" in out


@pytest.mark.parametrize(
  "name",
  [
    path.name
    for path in sorted(pathlib.Path(common.__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "common")
  ]
  + ["cifar.py:fast", "cifar.py:dit", "digits.py:dit", "jit.py:g32-512"],
)
def test_every_config_assembles(name):
  values = sample.flags.FlagValues()
  argv = ["", f"--config=configs/{name}"]
  sample.cli.define_config(values, argv, train.DEFAULT_CONFIG)
  sample.cli.parse(argv, values)
  config = values.config
  schedule = processes.schedule(config)
  checks.check(config, schedule)
  classes = config.model.num_classes or config.model.get("num_labels") or 10
  if config.model.num_classes == 0:  # as many as the data have
    config.model.num_classes = classes
  if name != "cifar.py" and "num_blocks" in config.model:
    config.model.num_blocks = 1  # to trace less
  net = networks.network(config, (64, 64, 3), classes)
  shapes = jax.eval_shape(
    lambda key: networks.init(
      config, net, (64, 64, 3), networks.optimizer(config), key
    ),
    jax.random.key(0),
  )
  if name == "cifar.py":
    count = sum(x.size for x in jax.tree.leaves(shapes.params))
    assert count == 35_746_307
