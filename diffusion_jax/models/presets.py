"""The published models by name: network, process, training, sampling.

A preset has all the settings of its paper or code, also those that the shapes
of the weights do not show: heads, order of q, k and v, embedding,
normalisation, padding, scale of time, kind of variance.

Sources: Ho et al. 2020, appendix B; Nichol and Dhariwal 2021, appendix A;
Dhariwal and Nichol 2021, appendix I (tables 11 to 14); and the code of each.

>>> PRESETS["ddpm-cifar10"].params
35746307
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.unet import Encoder, UNet

# PyTorch's defaults and OpenAI's embedding, in all of their networks.
_OPENAI = {
  "embedding": "cos_sin",
  "groups": 32,
  "epsilon": 1e-5,
  "padding": "symmetric",
  "qkv_order": "heads",
}
_IMPROVED = {**_OPENAI, "scale_shift": True, "heads": 4}
_ADM = {
  **_OPENAI,
  "scale_shift": True,
  "resample": "block",
  "head_channels": 64,
}
# Song et al. 2021, as Karras et al. 2022 train them: settings of ``UNet``.
DDPMPP: Mapping[str, Any] = {
  "channels": 128,
  "stem": 128,
  "num_blocks": 4,
  "resample": "block",
  "project": True,
  "skip_scale": math.sqrt(0.5),
  "up_attention": "last",
  "early_classes": True,
  "augment_labels": 9,
  "time_origin": 0.0,
}
NCSNPP: Mapping[str, Any] = {
  **DDPMPP,
  "embedding": "fourier",
  "taps": (1, 3, 3, 1),
  "pyramid": True,
}
# Karras et al. 2024, at 64 x 64, by size: settings of ``edm2.EDM2``; the rest
# is its default.
EDM2: Mapping[str, Mapping[str, Any]] = {
  "xxs": {"channels": 64, "dropout": 0.0},
  "xs": {"channels": 128, "dropout": 0.0},
  "s": {"channels": 192, "dropout": 0.0},
  "m": {"channels": 256, "dropout": 0.1},
  "l": {"channels": 320, "dropout": 0.1},
  "xl": {"channels": 384, "dropout": 0.1},
  "xxl": {"channels": 448, "dropout": 0.1},
}
_SIZES = {
  64: (1, 2, 3, 4),
  128: (1, 1, 2, 3, 4),
  256: (1, 1, 2, 2, 4, 4),
  512: (0.5, 1, 1, 2, 2, 4, 4),
}


@dataclasses.dataclass(frozen=True)
class Preset:
  """One published model.

  Attributes:
    net: The network.
    size: Height and width of its images, which have three channels.
    params: Number of its parameters, as published.
    schedule: A function of ``schedules`` by name, and its arguments.
    training: Batch size, steps, optimizer and so on, where published.
    variance: Variance of p(x_s | x_t).
    loss: "simple", "hybrid", "vlb", or "cross_entropy" for a classifier.
    low_res: Height and width of the images it upsamples; None for others.
    sampling: Sampler, steps and guidance of the published figures.
    source: The paper.
  """

  net: Encoder
  size: int
  params: int
  schedule: Mapping[str, Any]
  training: Mapping[str, Any]
  variance: str = "learned_range"
  loss: str = "hybrid"
  low_res: int | None = None
  sampling: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"sampler": "ancestral", "steps": 250}
  )
  source: str = "Dhariwal and Nichol 2021"

  @property
  def target(self) -> str:
    """What the network predicts: the noise, in all of these papers."""
    return "eps"


def param_shapes(preset: Preset) -> Any:
  """Shapes of the parameters, a tree; no memory is used."""
  x = jnp.zeros((1, preset.size, preset.size, 3))
  one = jnp.ones((1,), jnp.int32)
  cond = {}
  if preset.net.num_classes is not None:
    cond["y"] = one
  if preset.low_res is not None:
    cond["low_res"] = jnp.zeros((1, preset.low_res, preset.low_res, 3))
  return jax.eval_shape(
    lambda key: preset.net.init(key, x, one, cond or None), jax.random.key(0)
  )


def count_params(preset: Preset) -> int:
  """Number of parameters, from shapes alone."""
  shapes = param_shapes(preset)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _levels(size: int, resolutions: tuple[int, ...]) -> tuple[int, ...]:
  """The levels at which images of this size have these resolutions."""
  return tuple(sorted(int(math.log2(size // r)) for r in resolutions))


def _ddpm(size, params, multipliers, variance, **training) -> Preset:
  dropout = training.pop("dropout", 0.0)
  return Preset(
    net=UNet(
      multipliers=multipliers,
      attention_levels=_levels(size, (16,)),
      dropout=dropout,
      groups=32,
    ),
    size=size,
    params=params,
    schedule={"name": "linear", "T": 1000, "scale": False},
    variance=variance,
    loss="simple",
    training={"warmup_steps": 5000, "clip": 1.0, "ema": 0.9999, **training},
    sampling={"sampler": "ancestral", "steps": 1000},
    source="Ho et al. 2020",
  )


def _improved(size, params, net, *, T, rescale, loss, **training) -> Preset:
  schedule = training.pop("schedule", "cosine")
  low_res = training.pop("low_res", None)
  return Preset(
    net=UNet(
      **{
        **_IMPROVED,
        "attention_levels": _levels(size, (16, 8)),
        "out_channels": 6,
        "time_scale": 1000 / T if rescale else 1.0,
        **net,
      }
    ),
    size=size,
    params=params,
    schedule={"name": schedule, "T": T},
    loss=loss,
    # lambda of the bound: 0.001 times the sum over T, or the mean itself.
    training={"rescale_vlb": rescale, "ema": 0.9999, "flip": False, **training},
    low_res=low_res,
    source="Nichol and Dhariwal 2021",
  )


def _adm(size, params, *, channels, num_blocks=2, **options) -> Preset:
  training = options.pop("training")
  schedule = options.pop("schedule", "linear")
  low_res = options.pop("low_res", None)
  guidance = options.pop("guidance", None)
  attention = options.pop("attention", (32, 16, 8))
  sampling: dict[str, Any] = {"sampler": "ancestral", "steps": 250}
  if guidance is not None:
    sampling["guidance"] = guidance
  return Preset(
    net=UNet(
      **{
        **_ADM,
        "channels": channels,
        "multipliers": _SIZES[size],
        "num_blocks": num_blocks,
        "attention_levels": _levels(size, attention),
        "out_channels": 6,
        **options,
      }
    ),
    size=size,
    params=params,
    schedule={"name": schedule, "T": 1000},
    training={"ema": 0.9999, "flip": True, **training},
    low_res=low_res,
    sampling=sampling,
  )


def _adm_classifier(
  size,
  params,
  *,
  num_steps,
  num_blocks=2,
  batch_size=256,
  lr=3e-4,
  weight_decay=0.05,
) -> Preset:
  # Table 12; the linear decay and the flips are those of the published
  # classifier_train.py, as are the random crops (see ``data.load``).
  return Preset(
    net=Classifier(
      **{
        **_ADM,
        "channels": 128,
        "multipliers": _SIZES[size],
        "num_blocks": num_blocks,
        "attention_levels": _levels(size, (32, 16, 8)),
      }
    ),
    size=size,
    params=params,
    schedule={"name": "cosine" if size == 64 else "linear", "T": 1000},
    loss="cross_entropy",
    training={
      "batch_size": batch_size,
      "num_steps": num_steps,
      "lr": lr,
      "decay": "linear",
      "decay_steps": num_steps,
      "weight_decay": weight_decay,
      "flip": True,
    },
  )


_CIFAR = {"multipliers": (1, 2, 2, 2), "num_blocks": 3, "dropout": 0.3}
_IN64 = {"multipliers": _SIZES[64], "num_blocks": 3}

PRESETS: dict[str, Preset] = {
  "ddpm-cifar10": _ddpm(
    32, 35_746_307, (1, 2, 2, 2), "fixed_large",
    dropout=0.1, lr=2e-4, batch_size=128, num_steps=800_000, flip=True,
  ),
  "ddpm-256": _ddpm(
    256, 113_673_219, _SIZES[256], "fixed_small",
    lr=2e-5, batch_size=64, num_steps=2_400_000, flip=True,
  ),
  "improved-cifar10": _improved(
    32, 52_546_438, _CIFAR, T=4000, rescale=True, loss="hybrid",
    lr=1e-4, batch_size=128, num_steps=500_000,
  ),
  "improved-cifar10-vlb": _improved(
    32, 52_546_438, _CIFAR, T=4000, rescale=True, loss="vlb",
    timesteps="importance",
    lr=1e-4, batch_size=128, num_steps=500_000,
  ),
  "improved-imagenet64": _improved(
    64, 121_063_942, _IN64, T=4000, rescale=True, loss="hybrid",
    lr=1e-4, batch_size=128, num_steps=1_500_000,
  ),
  "improved-imagenet64-vlb": _improved(
    64, 121_063_942, _IN64, T=4000, rescale=True, loss="vlb",
    timesteps="importance",
    lr=1e-4, batch_size=128, num_steps=1_500_000,
  ),
  "improved-imagenet64-cond": _improved(
    64, 273_049_350, {**_IN64, "channels": 192, "num_classes": 1000},
    T=4000, rescale=False, loss="hybrid",
    lr=3e-4, batch_size=2048, num_steps=250_000,
  ),
  "improved-lsun": _improved(
    256, 113_676_678,
    {
      "multipliers": _SIZES[256], "attention_levels": _levels(256, (16,)),
      "heads": 1, "scale_shift": False,
    },
    T=1000, schedule="linear", rescale=False, loss="hybrid",
    lr=1e-4, batch_size=128, num_steps=1_200_000,
  ),
  "improved-upsample256": _improved(
    256, 279_792_390,
    {"channels": 192, "multipliers": _SIZES[256], "num_classes": 1000},
    T=4000, schedule="linear", rescale=False, loss="hybrid", low_res=64,
    lr=3e-4, batch_size=256, num_steps=500_000,
  ),
  "adm-imagenet64": _adm(
    64, 295_904_454, channels=192, num_blocks=3, dropout=0.1,
    qkv_order="qkv", num_classes=1000, schedule="cosine", guidance=1.0,
    training={"lr": 3e-4, "batch_size": 2048, "num_steps": 540_000},
  ),
  "adm-imagenet128": _adm(
    128, 421_529_606, channels=256, heads=4, head_channels=None,
    num_classes=1000, guidance=0.5,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 4_360_000},
  ),
  "adm-imagenet256": _adm(
    256, 553_838_086, channels=256, num_classes=1000, guidance=1.0,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 1_980_000},
  ),
  "adm-imagenet256-uncond": _adm(
    256, 552_814_086, channels=256, guidance=10.0,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 1_980_000},
  ),
  "adm-lsun": _adm(
    256, 552_814_086, channels=256, dropout=0.1,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 500_000},
  ),
  "adm-imagenet512": _adm(
    512, 558_997_638, channels=256, num_classes=1000, guidance=4.0,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 1_940_000},
  ),
  "adm-upsample256": _adm(
    256, 311_795_910, channels=192, heads=4, head_channels=None,
    num_classes=1000, low_res=64,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 500_000},
  ),
  "adm-upsample512": _adm(
    512, 308_835_270, channels=192, attention=(32, 16), num_classes=1000,
    multipliers=_SIZES[256],  # not those of the other 512 x 512 networks
    low_res=128,
    training={"lr": 1e-4, "batch_size": 256, "num_steps": 1_050_000},
  ),
  "adm-classifier64": _adm_classifier(
    64, 65_438_568, num_blocks=4, batch_size=1024, num_steps=300_000, lr=6e-4,
    weight_decay=0.2,
  ),
  "adm-classifier128": _adm_classifier(128, 42_568_040, num_steps=300_000),
  "adm-classifier256": _adm_classifier(256, 54_096_360, num_steps=500_000),
  "adm-classifier512": _adm_classifier(512, 54_448_360, num_steps=500_000),
}  # fmt: skip
