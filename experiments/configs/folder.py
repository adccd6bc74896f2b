"""DDPM on a folder (or .zip) of your own images.

  python -m experiments.train --config=configs/folder.py \
    --config.data.name=PATH --config.data.size="(64,)" --workdir=runs/mine

Images are cropped to the centre and resized. The network has 35.7M parameters;
on one GPU expect good samples from a few thousand 32 x 32 images after some
50,000 steps. Variants, as in --config=configs/folder.py:classes,
  classes  class-conditional (the class is the sub-folder), with classifier-free
           guidance: experiments.sample --classes=NAME
  small    a tenth of the parameters, for a CPU or a first try
  small-classes  both
"""

from experiments.configs import common


def get_config(variant: str = ""):
  """The configuration; ``variant`` is "" or one of the above."""
  common.check_variant(variant, ("classes", "small", "small-classes"))
  config = common.make(
    num_steps=100_000,
    data={"name": "pictures", "size": (32,)},
    flip=True,
    schedule={"name": "cosine"},
    variance="fixed_small",
    model={"dropout": 0.1},
    optim={"warmup_steps": 1000},
    ema={"rates": (0.999, 0.9999), "warmup": True},
    sampling={"steps": 250},
  )
  if variant.endswith("classes"):
    config.model.num_classes = 0  # as many as there are sub-folders
    config.label_dropout = 0.1
    config.sampling.guidance = 2.0
    config.flip = False  # for letters and signs; else --config.flip=True
  if variant.startswith("small"):
    config.num_steps = 20_000
    config.batch_size = 64
    config.model.channels = 48
    config.model.multipliers = (1, 2, 2)
    config.model.num_blocks = 1
    config.optim.lr = 5e-4
    config.every.update({"preview": 1000, "checkpoint": 1000})
  return config
