"""Improved DDPM, as published (Nichol and Dhariwal 2021, appendix A).

  python -m experiments.train --config=configs/improved.py:cifar10
  python -m experiments.train --config=configs/improved.py:cifar10-vlb

Variants: cifar10, cifar10-vlb, imagenet64, imagenet64-vlb, imagenet64-cond,
lsun. The paper reports, for CIFAR-10 after 500,000 steps, FID 3.19 and 3.17
bits per dimension with L_hybrid, 11.47 and 2.94 with L_vlb; for ImageNet 64 x
64 after 1,500,000 steps 19.2 and 3.57, and 40.1 and 3.53. 52.5M parameters
for CIFAR-10, 121M for ImageNet (273M with classes), 114M for LSUN bedrooms.
"""

from experiments.configs import common

DATA = {
  "cifar10": {"name": "cifar10"},
  "imagenet64": {"name": "downsampled_imagenet/64x64"},
  "imagenet64-cond": {"name": "imagenet2012", "size": (64,)},
  "lsun": {"name": "lsun/bedroom", "size": (256,)},
}


def get_config(variant: str = "cifar10"):
  """The configuration of a variant, by default "cifar10"."""
  variants = (*DATA, "cifar10-vlb", "imagenet64-vlb")
  common.check_variant(variant, variants)
  data = DATA[variant.removesuffix("-vlb")]
  return common.published(f"improved-{variant}", data=data)
