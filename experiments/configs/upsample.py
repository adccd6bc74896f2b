"""Upsamplers: diffusion of large images, conditioned on small ones.

  python -m experiments.train --config=configs/upsample.py

Variants: digits (4 x 4 to 8 x 8, two minutes on 2 CPU cores), smoke, and as
published improved256 (64 to 256; Nichol and Dhariwal 2021), adm256 (64 to 256)
and adm512 (128 to 512; Dhariwal and Nichol 2021). Another run samples the small
images: experiments.sample --upsampler.
"""

from experiments.configs import common, digits

PUBLISHED = {"improved256": 256, "adm256": 256, "adm512": 512}


def get_config(variant: str = "digits"):
  """The configuration of a variant, by default "digits"."""
  variant = variant or "digits"
  common.check_variant(variant, ("digits", "smoke", *PUBLISHED))
  if variant in PUBLISHED:
    family, size = variant[:-3], PUBLISHED[variant]
    data = {"name": "imagenet2012", "size": (size,)}
    return common.published(f"{family}-upsample{size}", data=data)
  config = digits.get_config("smoke" if variant == "smoke" else "")
  # A model's small images differ a little from those of the data: some noise
  # on both hides the difference.
  config.low_res = {"size": (4,), "noise": 200}
  if variant == "digits":
    config.num_steps = 600
    config.optim.decay_steps = 600
  return config
