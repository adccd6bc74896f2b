"""EDM, as published (Karras et al. 2022, appendix F).

  python -m experiments.train --config=configs/edm.py:cifar10-cond-vp

Variants: cifar10-vp, cifar10-ve, cifar10-cond-vp, cifar10-cond-ve, ffhq64-vp,
ffhq64-ve, afhq64-vp, afhq64-ve, imagenet64. vp is DDPM++, ve NCSN++, 55.7M to
62.8M parameters; imagenet64 is ADM's network of 296M. The paper reports FID
1.97 for CIFAR-10 and 1.79 with classes after 200M images, the lowest of three
seeds.

EDM's averages start with a half-life of 5 % of the images seen, ours with
``ema.warmup``.
"""

from diffusion_jax.models import presets
from experiments.configs import common

NETS = {"vp": presets.DDPMPP, "ve": presets.NCSNPP}
# Learning rate, batch, dropout, augmentation, millions of images, half-life,
# steps of Heun.
SETS = {
  "cifar10": (1e-3, 512, 0.13, 0.12, 200, 0.5, 18),
  "cifar10-cond": (1e-3, 512, 0.13, 0.12, 200, 0.5, 18),
  "ffhq64": (2e-4, 256, 0.05, 0.15, 200, 0.5, 40),
  "afhq64": (2e-4, 256, 0.25, 0.15, 200, 0.5, 40),
  "imagenet64": (1e-4, 4096, 0.10, 0.0, 2500, 50, 256),
}
VARIANTS = (
  *(f"{name}-{net}" for name in SETS if name != "imagenet64" for net in NETS),
  "imagenet64",
)
FOLDERS = {"ffhq64": "ffhq", "afhq64": "afhqv2"}


def get_config(variant: str = "cifar10-cond-vp"):
  """The configuration of a variant, by default "cifar10-cond-vp"."""
  variant = variant or "cifar10-cond-vp"
  common.check_variant(variant, VARIANTS)
  name, _, net = (
    variant.rpartition("-") if "-" in variant else (variant, "", "")
  )
  lr, batch, dropout, augment, pictures, half, steps = SETS[name]
  size = 32 if name.startswith("cifar10") else 64
  churn = {}
  if name == "imagenet64":
    data, model = (
      "imagenet2012",
      common.settings(presets.PRESETS["adm-imagenet64"].net),
    )
    model["time_origin"] = 0.0
    churn = {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
  else:
    data = FOLDERS.get(name, "cifar10")
    model = {
      **NETS[net],
      "multipliers": (2, 2, 2) if size == 32 else (1, 2, 2, 2),
      "attention_levels": (1,) if size == 32 else (2,),  # 16 x 16
      "num_classes": 0 if name == "cifar10-cond" else None,
    }
  return common.make(
    batch_size=batch,
    augment=augment,
    num_steps=round(pictures * 1e6 / batch),
    data={"name": data, "size": (size,), "channels": 3},
    schedule={"name": "ve"},
    target="edm",
    timesteps="log_normal",
    variance="fixed_small",
    model={**model, "dropout": dropout},
    optim={"lr": lr, "warmup_steps": round(10e6 / batch), "clip": None},
    ema={"rates": (0.5 ** (batch / (half * 1e6)),), "warmup": True},
    every={"log": 100, "preview": 10_000, "checkpoint": 5_000},
    preview={"sampler": "edm_heun", "steps": 18},
    sampling={
      "sampler": "edm_heun", "steps": steps, "clip": False, "churn": churn,
    },
  )  # fmt: skip
