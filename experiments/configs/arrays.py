"""Signals or volumes: arrays of any rank, in their own units.

  python -m experiments.train --config=configs/arrays.py:signals \
    --config.data.name=PATH.npy --workdir=runs/signals

The networks are small: docs/any-rank.md trains them in a few minutes on a CPU.
For larger data, set more channels, levels and steps. Variants:
  signals  [N, L, C] or [N, L]
  volumes  [N, D, H, W, C] or [N, D, H, W]
"""

from experiments.configs import common

RANKS = {"signals": 1, "volumes": 3}


def get_config(variant: str = "signals"):
  """The configuration; ``variant`` is one of the above."""
  common.check_variant(variant, tuple(RANKS))
  signals = variant == "signals"
  steps = 400 if signals else 250
  return common.make(
    num_steps=steps,
    batch_size=32 if signals else 16,
    data={"name": f"{variant}.npy", "rank": RANKS[variant]},
    schedule={"name": "cosine"},
    target="v",
    variance="fixed_small",
    model={
      "channels": 16 if signals else 8,
      "multipliers": (1, 2, 2) if signals else (1, 2),
      "num_blocks": 1,
      "attention_levels": (2,) if signals else (1,),
    },
    optim={"lr": 2e-3, "warmup_steps": 50, "decay_steps": steps},
    ema={"rates": (0.98,), "warmup": True},
    every={"log": 50, "preview": steps, "checkpoint": steps},
    preview={"num": 16, "steps": 25},
    sampling={"sampler": "ddim", "steps": 50},
  )
