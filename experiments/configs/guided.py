"""Guided Diffusion, as published (Dhariwal and Nichol 2021, appendix I).

  python -m experiments.train --config=configs/guided.py:imagenet128

Variants: imagenet64, imagenet128, imagenet256, imagenet256-uncond, imagenet512,
lsun. 296M to 559M parameters; python -m experiments.presets lists them. With
250 steps and a classifier's guidance the paper reports FID 2.07 (64 x 64, no
guidance), 2.97 (128), 4.59 (256) and 7.72 (512). TFDS needs ImageNet's
archives downloaded by hand: www.tensorflow.org/datasets/catalog/imagenet2012.
"""

from experiments.configs import common

SIZES = {
  "imagenet64": 64,
  "imagenet128": 128,
  "imagenet256": 256,
  "imagenet256-uncond": 256,
  "imagenet512": 512,
  "lsun": 256,
}


def get_config(variant: str = "imagenet64"):
  """The configuration of a variant, by default "imagenet64"."""
  variant = variant or "imagenet64"
  common.check_variant(variant, tuple(SIZES))
  name = "lsun/bedroom" if variant == "lsun" else "imagenet2012"
  data = {"name": name, "size": (SIZES[variant],)}
  return common.published(f"adm-{variant}", data=data)
