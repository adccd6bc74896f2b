"""DDPM on scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

  python -m experiments.train --config=configs/digits.py

About 5 minutes on 2 CPU cores, Frechet distance in pixel space about 0.15.
Variants, as in --config=configs/digits.py:smoke,
  smoke    half a minute; only shows that everything works
  classes  class-conditional, with classifier-free guidance:
           experiments.sample --classes=3 --guidance=2
  learned  a learned variance and L_hybrid, for bits per dimension:
           experiments.evaluate --metrics=bpd. (The data have 17 grey levels;
           the number assumes 256.)
  edm      EDM: F of unit variance, sigma log-normal, Heun's 18 steps
  flow     flow matching: a straight path, its velocity, logit-normal times
  v        predicts v
  jit-loss predicts x0 on the straight path, minimises the velocity's error
  dit      a transformer of patches of 2 x 2 instead of the U-Net
  consistency, meanflow, distilled
           one to four network calls, see docs/one-step.md
"""

from experiments.configs import common

VARIANTS = (
  "smoke", "classes", "learned", "edm", "flow", "v", "jit-loss", "dit",
  "consistency", "meanflow", "distilled",
)  # fmt: skip


def get_config(variant: str = ""):
  """The configuration; ``variant`` is "" or one of the above."""
  common.check_variant(variant, VARIANTS)
  config = common.make(
    num_steps=1500,
    batch_size=128,
    # One program allocates memory for activations once: on a CPU a step takes
    # a fifth less time.
    steps_per_dispatch=10,
    data={"name": "digits"},
    flip=False,  # a mirrored 3 is not a digit
    schedule={"name": "cosine"},
    variance="fixed_small",
    # 3 x 3 convolutions at 8 x 8 and 4 x 4: deeper levels, or fewer
    # channels, take a CPU longer for the same loss.
    model={
      "channels": 32,
      "multipliers": (1, 2),
      "num_blocks": 1,
      "attention_levels": (1,),
    },
    optim={"lr": 2e-3, "warmup_steps": 100, "decay_steps": 1500},
    ema={"rates": (0.995,), "warmup": True},
    every={"log": 50, "preview": 500, "checkpoint": 500},
    sampling={"steps": 250},
  )
  if variant == "classes":
    config.model.num_classes = 10
    config.label_dropout = 0.15
    config.sampling.guidance = 2.0
  if variant == "learned":
    config.variance = "learned_range"
    config.loss.name = "hybrid"
  if variant == "v":
    config.target = "v"
  if variant == "edm":
    edm(config)
  if variant in ("flow", "jit-loss"):
    flow(config, variant)
  if variant == "dit":
    common.exchange_network(config, "dit")
    config.model.update({"width": 128, "depth": 6, "heads": 4})
    config.optim.lr = 1e-3
  if variant in FEW_CALLS:
    FEW_CALLS[variant](config)
  if variant == "smoke":
    config.update(
      {
        "num_steps": 20,
        "batch_size": 32,
        "steps_per_dispatch": 1,
        "model": {"channels": 16},
        "optim": {"warmup_steps": 5, "decay_steps": 20},
        "every": {"log": 5, "preview": 10, "checkpoint": 10},
        "preview": {"num": 16, "steps": 10},
        "sampling": {"steps": 20},
      }
    )
  return config


def edm(config) -> None:
  """EDM's target, noise levels and sampler (Karras et al. 2022)."""
  config.schedule.name = "ve"
  config.target = "edm"
  config.sigma_data = 0.75  # of the digits; natural images have 0.5
  config.timesteps = "log_normal"
  config.model.time_origin = 0.0
  config.sampling.update({"sampler": "edm_heun", "steps": 18, "clip": False})
  config.preview.update({"sampler": "edm_heun", "steps": 10})


def flow(config, variant: str) -> None:
  """The straight path (Lipman et al. 2022), its times as Esser et al. 2024."""
  config.schedule.name = "flow"
  config.timesteps = "logit_normal"
  config.target = "flow"
  if variant == "jit-loss":  # Li and He 2025
    config.target = "x0"
    config.loss.space = "jit"
    config.update({"time_mean": 0.8, "time_std": 0.8})
  config.model.update({"time_origin": 0.0, "time_scale": 1000.0})
  config.sampling.update({"sampler": "flow_heun", "steps": 50})


def consistency(config) -> None:
  """Consistency models made easy (Geng et al. 2024), on EDM's network."""
  edm(config)
  config.objective.update({"name": "consistency", "stage": 250})
  config.update({"time_mean": -1.1, "time_std": 2.0})
  config.sampling.update({"sampler": "consistency", "steps": 2})
  config.preview.update({"sampler": "consistency", "steps": 2})


def meanflow(config) -> None:
  """Average velocities (Geng et al. 2025)."""
  flow(config, "meanflow")
  config.objective.update({"name": "meanflow", "equal": 0.5})
  config.time_mean = -0.4
  # The objective differentiates the network by t: its sines must be slow.
  config.model.time_scale = 10.0
  config.sampling.update({"sampler": "meanflow", "steps": 1, "clip": False})
  config.preview.update({"sampler": "meanflow", "steps": 1})


def distilled(config) -> None:
  """Half the steps of a run that predicts v (Salimans and Ho 2022)."""
  config.target = "v"
  # 64 steps become 32: DDIM's 16 are too few to begin with (docs/one-step.md).
  config.objective.update({"name": "distillation", "steps": 32})
  steps = config.objective.get_ref("steps")
  for sampling in (config.sampling, config.preview):
    sampling.update({"sampler": "ddim", "spacing": "trailing", "steps": steps})


FEW_CALLS = {
  "consistency": consistency, "meanflow": meanflow, "distilled": distilled,
}  # fmt: skip
