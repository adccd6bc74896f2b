"""DDPM on CIFAR-10, as published (Ho et al. 2020, section 4, appendix B).

  python -m experiments.train --config=configs/cifar.py

35.7M parameters. The paper reports FID 3.17 after 800,000 steps, 10.6 hours
on a TPU v3-8. TFDS prepares the data the first time, which needs TensorFlow:
pip install -e '.[tfds]'.
"""

from experiments.configs import common


def get_config(variant: str = ""):
  """The configuration; there are no variants."""
  common.check_variant(variant, ())
  return common.make(
    num_steps=800_000,
    batch_size=128,
    data={"name": "cifar10"},
    flip=True,
    schedule={"name": "linear", "T": 1000, "scale": False},
    target="eps",
    variance="fixed_large",
    model={
      "channels": 128,
      "multipliers": (1, 2, 2, 2),
      "num_blocks": 2,
      "attention_levels": (1,),  # 16 x 16
      "dropout": 0.1,
    },
    optim={"lr": 2e-4, "warmup_steps": 5000, "clip": 1.0},
    ema={"rates": (0.9999,), "warmup": False},
    every={"log": 100, "preview": 10_000, "checkpoint": 5_000},
    sampling={"sampler": "ancestral", "steps": 1000},
  )
