"""Makes a run directory from published weights.

  python -m experiments.import_weights --source=google/ddpm-cifar10-32 \
    --workdir=runs/cifar
  python -m experiments.import_weights --source=64x64_diffusion.pt \
    --preset=adm-imagenet64 --workdir=runs/imagenet64

The source is a .pt file from OpenAI, a diffusers folder or its name on the
Hugging Face hub, a TensorFlow checkpoint of the original DDPM code, or a file
in the layout of DiT and JiT. What the shapes of the weights do not show comes
from the preset, from the folder's own settings or from a configuration file of
yours (--config). Sample from the run, evaluate it and train it like any other;
to evaluate or train, pass the data: --config.data.name=PATH.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import diffusion_jax as dj
from diffusion_jax.models import Classifier, presets
from diffusion_jax.pretrained import diffusers_config, files, formats
from diffusion_jax.runs import checks, choices, directory, networks, processes
from diffusion_jax.runs.configuration import Config, is_classifier
from diffusion_jax.runs.training import continuing
from experiments import cli
from experiments.cli import devices
from experiments.configs import common

# What a source without settings of its process leaves open.
PROCESS = ("schedule.name", "schedule.T", "target", "variance")


class Source(NamedTuple):
  """Where weights come from, and their settings.

  Attributes:
    path: File, folder, or prefix of a TensorFlow checkpoint.
    unet: The settings of a diffusers folder.
    process: The process of its scheduler.
  """

  path: pathlib.Path
  unet: dict[str, Any] | None = None
  process: dict[str, Any] | None = None


def look(name: str) -> Source:
  """Finds a source, on the hub if need be, and reads its settings.

  Raises:
    ValueError: If there is no such source or its settings are not supported.
  """
  path = files.find(name)
  if not path.is_dir():
    return Source(path)
  unet = files.read_json(files.model_folder(path) / "config.json")
  scheduler = files.scheduler_file(path)
  process = {}
  if scheduler is not None:
    settings = files.read_json(scheduler)
    process = diffusers_config.process(settings)
    if not settings.get("clip_sample", True):
      cli.say(f"{scheduler} does not clip x0 to [-1, 1]; the samplers here do")
  return Source(path, unet, process)


def tensors(source: Source) -> dict[str, np.ndarray]:
  """Reads a source's weights."""
  if source.unet is not None:
    return files.read(files.weights_file(files.model_folder(source.path)))
  if source.path.is_file():
    return files.read(source.path)
  module = dj.pretrained.tensorflow
  return module.network_variables(module.read_checkpoint(source.path))


def usual(source: Source, preset: str | None) -> Config:
  """The configuration of a source and a preset, before overrides.

  Raises:
    ValueError: If the preset is unknown, or is not the source's model.
  """
  if preset is not None:
    choices.named("--preset", preset, presets.PRESETS)
    found = presets.PRESETS[preset]
    if isinstance(found.net, Classifier):
      return common.published_classifier(preset, data=_no_data(found.size))
    config = common.published(preset, data=_no_data(found.size))
    _check_preset(source, config, preset)
    return config
  if source.unet is None:
    raise ValueError(
      f"{source.path} does not say what shapes cannot show, such as the "
      "heads and the schedule: pass --preset=NAME, one of "
      f"{', '.join(presets.PRESETS)}; or --config=FILE"
    )
  model = _model(source.unet)
  process = dict(source.process or {})
  learned = process.get("variance", "").startswith("learned")
  sampling, preview = {}, {}
  if "schedule" in process:
    T = process["schedule"]["T"]
    sampling = {"steps": T}
    preview = {"steps": min(common.make().preview.steps, T)}
  return common.make(
    data=_no_data(source.unet.get("sample_size")),
    model=model,
    loss={"name": "hybrid" if learned else "simple"},
    sampling=sampling,
    preview=preview,
    **process,
  )


def _no_data(size) -> dict[str, Any]:
  """The section ``data`` of imported weights: only the size is known."""
  sizes = () if size is None else (size,) if isinstance(size, int) else size
  return {"name": "", "size": tuple(sizes)}


def _model(unet: Mapping[str, Any]) -> dict[str, Any]:
  """The section ``model`` from the settings of a config.json."""
  settings = diffusers_config.settings(unet)
  del settings["out_channels"]  # the image's, or twice if it learns variances
  return settings


def _check_preset(source: Source, config: Config, preset: str) -> None:
  """Checks a preset against a folder's own settings."""
  if source.unet is None:
    return
  theirs = continuing.flat(
    {"model": _model(source.unet), **(source.process or {})}
  )
  ours = continuing.flat(config.to_dict())
  for key, value in theirs.items():
    # Rates of dropout are for training; schedules are compared as tables.
    if key == "model.dropout" or key.startswith("schedule."):
      continue
    if ours[key] != value:
      raise ValueError(
        f"--preset={preset} has {key}={ours[key]!r}, the source {value!r}"
      )
  if source.process:
    there = common.make(schedule=source.process["schedule"])
    if not processes.same_noise(config, there):
      raise ValueError(
        f"--preset={preset} has the schedule {config.schedule.to_dict()}, the "
        f"source {source.process['schedule']}"
      )


def check_said(source: Source, preset, argv: Sequence[str]) -> None:
  """Raises for settings missing in source, preset and command line."""
  if preset is not None or source.unet is None:
    return
  known = continuing.flat(source.process or {})
  given = {arg.lstrip("-").split("=")[0] for arg in argv}
  doubtful = [
    key for key in PROCESS if key not in known and f"config.{key}" not in given
  ]
  if doubtful:
    raise ValueError(
      f"{source.path} does not say {', '.join(doubtful)}: pass --preset=NAME, "
      f"or {', '.join(f'--config.{key}=...' for key in doubtful)}"
    )


def image_shape(
  config: Config, source: Source, weights: Mapping[str, np.ndarray]
) -> tuple[int, int, int]:
  """(H, W, C) of the images, from the settings and the first convolution.

  Raises:
    ValueError: If the size is not known or the channels contradict.
  """
  size = list(config.data.size)
  if not size:
    raise ValueError(
      f"{source.path} does not say how large its images are: pass "
      '--config.data.size="(32,)"'
    )
  if len(size) > 2 or config.data.rank != 2:
    raise ValueError(
      f"data.size={tuple(size)}, data.rank={config.data.rank}: published "
      "weights are of pictures, of rank 2"
    )
  layout = formats.format_of(weights)
  if layout.first not in weights:
    raise ValueError(f"missing from the weights: {layout.first}")
  shape = weights[layout.first].shape
  if len(shape) != 4:
    raise ValueError(f"{layout.first} is {shape} in the weights, not a kernel")
  # An upsampler gets the small image beside the noisy one.
  channels = shape[layout.axis] // (2 if config.low_res.size else 1)
  said = None if source.unet is None else source.unet.get("in_channels", 3)
  if said not in (None, channels):
    raise ValueError(
      f"in_channels={said} in {source.path}, but {layout.first} has {channels}"
    )
  return size[0], size[-1], channels


def describe(config: Config, shape, name: str) -> dict[str, Any]:
  """The data.json of data that this run has not seen."""
  classes = config.model.get("num_labels") or config.model.num_classes or 0
  return {
    "name": f"none yet; the weights are {name}",
    "examples": 0,
    "image_shape": list(shape),
    "num_classes": classes,
    "class_names": [str(k) for k in range(classes)],
    "fingerprint": None,  # see continuing.check
  }


def write(
  workdir: pathlib.Path, config: Config, data: dict, params, origin: dict
) -> None:
  """Writes the run: the weights are the parameters and every average.

  It is made whole in a hidden folder and then moved, config.json last: what a
  killed import leaves is in nobody's way.
  """
  tx = networks.optimizer(config)
  state = networks.state(config, jax.tree.map(jax.numpy.asarray, params), tx)
  with directory.opened(workdir):
    new = workdir / ".import"
    shutil.rmtree(new, ignore_errors=True)
    with dj.checkpoint.Checkpoints(new / "checkpoints") as checkpoints:
      checkpoints.save(state)
    files.write_json(new / "imported.json", origin)
    directory.describe_run(new, directory.config_json(config), data)
    for path in sorted(new.iterdir(), key=lambda p: p.name == "config.json"):
      path.rename(workdir / path.name)
    new.rmdir()


def check_empty(workdir: pathlib.Path) -> None:
  """Raises for a directory that is not empty."""
  directory.check_place(workdir)
  if directory.is_run(workdir):
    raise ValueError(
      f"{workdir} is not empty, it holds a run; choose another --workdir"
    )


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()
  for name, text in {
    "source": "file, folder, TensorFlow prefix, or OWNER/NAME on the hub",
    "preset": f"one of {', '.join(presets.PRESETS)}",
    "workdir": "run directory to make",
  }.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  known = cli.peek(argv, "source", "preset", "workdir", "config")
  help_only = "--help" in argv or "-h" in argv
  with cli.user_errors():
    if help_only:
      source, preset = Source(pathlib.Path()), None
      cli.define_known_config(values, argv, common.make())
    else:
      for name in ("source", "workdir"):
        if not known[name]:
          raise ValueError(f"--{name} is missing")
      check_empty(pathlib.Path(str(known["workdir"])))
      source, preset = look(str(known["source"])), known["preset"]
      if known["config"]:
        if preset:
          raise ValueError("--preset and --config exclude each other")
        cli.define_config(values, argv, known["config"])
      else:
        cli.define_known_config(values, argv, usual(source, preset))
        check_said(source, preset, argv)
  cli.parse(argv, values)
  with cli.user_errors():
    run(source, values.config, values)


def run(source: Source, config: Config, values: flags.FlagValues) -> None:
  """Reads, checks, writes.

  Raises:
    ValueError: For any mistake of the user.
  """
  workdir = pathlib.Path(values.workdir)
  checks.check(config, processes.schedule(config))
  if not is_classifier(config):
    processes.loss_at(config)
  weights = tensors(source)
  shape = image_shape(config, source, weights)
  data = describe(config, shape, values.source)
  net = networks.network(config, shape, data["num_classes"])
  params = formats.convert(weights, net)
  origin = {
    "source": values.source,
    "path": str(source.path),
    "preset": values.preset,
  }
  write(workdir, config, data, params, origin)
  count = sum(x.size for x in jax.tree.leaves(params))
  cli.say(f"{count:,} parameters of {values.source} are written to {workdir}")
  then = {"workdir": workdir}
  if config.low_res.size:
    then = {"workdir": "A_RUN", "upsampler": workdir}
  elif is_classifier(config):
    then = {"workdir": "A_RUN", "classifier": workdir}
  cli.say(f"next: {cli.command('sample', **then)}")


if __name__ == "__main__":
  cli.run(main)
