"""Flow matching on CIFAR-10 without classes (Lipman et al. 2022).

  python -m experiments.train --config=configs/flow.py

The straight path, its velocity, uniform times: the recipe of torchcfm (Tong et
al. 2024) with DDPM's U-Net, 35.7M parameters. torchcfm reports FID 3.5 after
400,000 steps with an adaptive solver; 7.5 without the average.

Variants, as in --config=configs/flow.py:skewed,
  skewed  a larger network, logit-normal times: EDM's noise levels on this path.
          The recipe of Meta's flow_matching, FID 2.07 with 50 calls of Heun's
          method.
"""

from experiments.configs import common


def get_config(variant: str = ""):
  """The configuration; ``variant`` is "" or one of the above."""
  common.check_variant(variant, ("skewed",))
  config = common.make(
    num_steps=400_000,
    batch_size=128,
    data={"name": "cifar10"},
    flip=True,
    schedule={"name": "flow"},
    target="flow",
    timesteps="uniform",
    variance="fixed_small",
    model={
      "channels": 128,
      "multipliers": (1, 2, 2, 2),
      "num_blocks": 2,
      "attention_levels": (1,),  # 16 x 16
      "head_channels": 64,
      "dropout": 0.1,
      "time_origin": 0.0,  # t itself, in [0, 1]
    },
    optim={"lr": 2e-4, "warmup_steps": 5000, "clip": 1.0},
    ema={"rates": (0.9999,), "warmup": False},
    every={"log": 100, "preview": 10_000, "checkpoint": 5_000},
    preview={"sampler": "flow_heun", "steps": 18},
    sampling={"sampler": "flow_heun", "steps": 50, "clip": False},
  )
  if variant == "skewed":
    skewed(config)
  return config


def skewed(config) -> None:
  """Meta's flow_matching, examples/image."""
  config.update(
    {
      "num_steps": 1800 * 50_000 // 512,
      "batch_size": 512,
      "timesteps": "logit_normal",
      "time_mean": -1.2,
      "time_std": 1.2,
      "model": {
        "multipliers": (2, 2, 2),
        "num_blocks": 4,
        "head_channels": None,  # one head
        "scale_shift": True,
        "dropout": 0.3,
      },
      "optim": {
        "lr": 1e-4, "warmup_steps": 0, "clip": None, "b2": 0.95,
        "weight_decay": 0.01,
      },
      "ema": {"rates": (0.999,), "warmup": True},
      "sampling": {"steps": 25, "spacing": "karras"},  # 49 calls
    }
  )  # fmt: skip
