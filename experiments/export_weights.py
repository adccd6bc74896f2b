"""Writes a run's weights for use elsewhere.

  python -m experiments.export_weights --workdir=runs/cifar \
    --format=diffusers --out=exported
  python -m experiments.export_weights --workdir=runs/imagenet64 \
    --format=openai --out=imagenet64.pt

"diffusers" writes a folder that UNet2DModel and DDPMPipeline load; "openai"
writes a .pt file in the layout of improved-diffusion and guided-diffusion, and
beside it a .json file with the flags that their scripts need; "dit" writes a
transformer to a .safetensors or .pt file in the layout of DiT and JiT. Networks
that the other code cannot run correctly are refused.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

import diffusion_jax as dj
from diffusion_jax import shapes
from diffusion_jax.pretrained import diffusers_config, files
from diffusion_jax.runs import choices, directory, networks, restoring
from experiments import cli
from experiments.cli import devices


def to_diffusers(out: pathlib.Path, config, net, params, image_shape) -> None:
  """Writes a diffusers folder: network and scheduler at the top.

  Raises:
    ValueError: If diffusers has no such network or process.
  """
  if not isinstance(net, dj.UNet):
    layouts = {dj.models.DiT: "dit", dj.models.Classifier: "openai"}
    other = [f for kind, f in layouts.items() if isinstance(net, kind)]
    advice = f"; use --format={other[0]}" if other else ""
    raise ValueError(f"diffusers has no such {type(net).__name__}{advice}")
  unet = diffusers_config.config(net, image_shape)
  scheduler = diffusers_config.scheduler(
    config.schedule.to_dict(), config.target, config.variance
  )
  tensors = dj.pretrained.to_diffusers(params, net)
  files.write(out / f"{files.WEIGHTS}.safetensors", tensors)
  files.write_json(out / "scheduler_config.json", scheduler)
  index = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
  }
  files.write_json(out / "model_index.json", index)
  files.write_json(out / "config.json", unet)


def to_openai(out: pathlib.Path, config, net, params, image_shape) -> None:
  """Writes a .pt file, and the flags of OpenAI's scripts beside it.

  Raises:
    ValueError: If their code has no such network.
  """
  if out.suffix != ".pt":
    raise ValueError(f"--out={out} must end in .pt")
  files.write(out, dj.pretrained.to_openai(params, net))
  files.write_json(out.with_suffix(".json"), script_flags(config, image_shape))


def to_dit(out: pathlib.Path, config, net, params, image_shape) -> None:
  """Writes a file in the layout of DiT, SiT and JiT.

  Raises:
    ValueError: If their code has no such network.
  """
  del config
  suffixes = (".safetensors", ".pt")
  if out.suffix not in suffixes:
    raise ValueError(f"--out={out} must end in {' or '.join(suffixes)}")
  files.write(out, dj.pretrained.to_dit(params, net, image_shape[:2]))


def script_flags(config, image_shape) -> dict[str, Any]:
  """The settings of a run as flags of guided-diffusion's scripts."""
  model = config.model
  size = image_shape[0]
  return {
    "image_size": size,
    "num_channels": model.channels,
    "channel_mult": ",".join(str(m) for m in model.multipliers),
    "num_res_blocks": model.num_blocks,
    "attention_resolutions": ",".join(
      str(size >> level) for level in model.attention_levels
    ),
    "num_heads": model.heads,
    "num_head_channels": model.head_channels or -1,
    "use_new_attention_order": model.qkv_order == "qkv",
    "use_scale_shift_norm": model.scale_shift,
    "resblock_updown": model.resample == "block",
    "class_cond": model.num_classes is not None,
    "learn_sigma": config.variance.startswith("learned"),
    "diffusion_steps": config.schedule.T,
    "noise_schedule": config.schedule.name,
    "rescale_timesteps": not math.isclose(model.time_scale, 1.0),
  }


FORMATS: Mapping[str, Any] = {
  "diffusers": to_diffusers, "openai": to_openai, "dit": to_dit,
}  # fmt: skip


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()
  for name, text in {
    "workdir": "run directory",
    "format": f"one of {', '.join(FORMATS)}",
    "out": "folder (diffusers), .pt file (openai, dit) or .safetensors (dit)",
    "ema": "average: its rate, std:WIDTH, or raw; by default the slowest",
  }.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  flags.DEFINE_integer(
    "checkpoint",
    None,
    "step of the checkpoint; by default the newest",
    lower_bound=0,
    flag_values=values,
  )
  cli.parse(argv, values)
  with cli.user_errors():
    for name in ("workdir", "format", "out"):
      if values[name].value is None:
        raise ValueError(f"--{name} is missing")
    export(values)


def export(values: flags.FlagValues) -> None:
  """Reads the run and writes its weights.

  Raises:
    ValueError: For any mistake of the user.
  """
  write = FORMATS[choices.named("--format", values.format, FORMATS)]
  out, workdir = pathlib.Path(values.out), pathlib.Path(values.workdir)
  if out.is_file() or (out.is_dir() and any(out.iterdir())):
    raise ValueError(f"--out={out} is there already; choose another")
  cli.check_out(out)
  config, data = directory.load(workdir)
  shape = tuple(data["image_shape"])
  if len(shape) != 3:
    raise ValueError(
      f"--workdir={workdir} is of {shapes.noun(shape)}s; published "
      "formats are of pictures"
    )
  net = networks.network(config, shape, data["num_classes"])
  ema = restoring.average(config, values.ema)
  params, step = restoring.parameters(
    workdir, config, net, shape, ema, values.checkpoint
  )
  params = jax.device_get(params)
  with cli.system_errors():
    write(out, config, net, params, shape)
  which = "raw parameters" if ema == "raw" else f"average {ema}"
  cli.say(f"written to {out}: the {which} of step {step}")


if __name__ == "__main__":
  cli.run(main)
