"""Signals, volumes or fields: arrays of any rank, in their own units.

  python -m experiments.train --config=configs/arrays.py:signals \
    --config.data.name=PATH.npy --workdir=runs/signals

The networks are small: docs/any-rank.md trains them in a minute or two each on
a CPU. For larger data, set more channels, levels and steps. Variants:
  signals  [N, L, C] or [N, L]
  volumes  [N, D, H, W, C] or [N, D, H, W], or a folder of multi-page TIFFs
  fields   [N, H, W, C], of which data.cond knows some numbers
"""

from typing import Any

from experiments.configs import common

VARIANTS: dict[str, dict[str, Any]] = {
  "signals": {
    "rank": 1, "num_steps": 1000, "batch_size": 32,
    "model": {
      "channels": 16, "multipliers": (1, 2, 2), "attention_levels": (2,),
    },
  },
  "volumes": {
    "rank": 3, "num_steps": 250, "batch_size": 16,
    "model": {"channels": 8, "multipliers": (1, 2), "attention_levels": (1,)},
  },
  # scale_shift: what is known changes what there is, not just where it is.
  "fields": {
    "rank": 2, "num_steps": 400, "batch_size": 32,
    "model": {
      "channels": 16, "multipliers": (1, 2), "attention_levels": (1,),
      "scale_shift": True,
    },
  },
}  # fmt: skip


def get_config(variant: str = "signals"):
  """The configuration; ``variant`` is one of the above."""
  common.check_variant(variant, tuple(VARIANTS))
  chosen = VARIANTS[variant]
  steps = chosen["num_steps"]
  return common.make(
    num_steps=steps,
    batch_size=chosen["batch_size"],
    # One program for ten small steps: on a CPU each takes a third of the time.
    steps_per_dispatch=10,
    data={"name": f"{variant}.npy", "rank": chosen["rank"]},
    schedule={"name": "cosine"},
    target="v",
    variance="fixed_small",
    model={"num_blocks": 1, **chosen["model"]},
    optim={"lr": 2e-3, "warmup_steps": 50, "decay_steps": steps},
    ema={"rates": (0.98,), "warmup": True},
    every={"log": 50, "preview": steps, "checkpoint": steps},
    preview={"num": 16, "steps": 25},
    sampling={"sampler": "ddim", "steps": 50},
  )
