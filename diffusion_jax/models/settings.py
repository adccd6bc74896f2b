"""Checks of a network's settings."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.attention import KERNELS

CHOICES = {
  "resample": ("conv", "block"),
  "padding": ("same", "symmetric"),
  "up_attention": ("every", "last"),
}


def check_settings(net: Any) -> None:
  """Checks settings that would be misread, or fail only later.

  Args:
    net: An ``Encoder``.

  Raises:
    ValueError: With the setting, its value and what is allowed.
  """
  for name, allowed in CHOICES.items():
    if getattr(net, name) not in allowed:
      raise ValueError(f"{name}={getattr(net, name)!r} is not one of {allowed}")
  rates, levels = net.dropout, len(net.multipliers)
  rates = (rates,) * levels if isinstance(rates, int | float) else tuple(rates)
  if len(rates) != levels or not all(0 <= r < 1 for r in rates):
    raise ValueError(
      f"dropout={net.dropout} must be one number in [0, 1) or one for each of "
      f"the {levels} levels"
    )
  check_levels(net)
  if len(net.taps) % 2 or not np.sum(net.taps):
    raise ValueError(
      f"taps={tuple(net.taps)} must be an even number, like (1, 3, 3, 1)"
    )
  if not net.epsilon > 0:
    raise ValueError(f"epsilon={net.epsilon} must be above 0")


def check_levels(net: Any) -> None:
  """Checks the levels of a U-Net of any kind, and ``check_common``.

  Raises:
    ValueError: With the setting, its value and what is allowed.
  """
  # A time is embedded in as many sines as there are channels.
  _check_numbers("channels", [net.channels], least=4)
  _check_numbers("multipliers", net.multipliers, least=0)
  widths = [int(net.channels * m) for m in net.multipliers]
  _check_numbers("channels * multipliers", widths, least=1)
  _check_numbers("num_blocks", [net.num_blocks], least=1)
  levels = len(net.multipliers)
  wrong = [n for n in net.attention_levels if n not in range(levels)]
  if wrong:
    raise ValueError(
      f"attention_levels has {wrong[0]}; the levels are 0..{levels - 1}"
    )
  check_common(net)


def _check_numbers(name: str, values: Sequence[Any], *, least: int) -> None:
  numbers = [n for n in values if isinstance(n, int | float)]
  if not values or len(numbers) < len(values) or min(numbers) < least:
    raise ValueError(
      f"{name}={values[0] if len(values) == 1 else tuple(values)!r} must be "
      f"numbers, at least {least}"
    )


# Settings of which not every network has each, and the least they can be.
LEAST = {
  **dict.fromkeys(("groups", "head_channels", "stem"), 1),
  **dict.fromkeys(("num_classes", "num_labels", "out_channels"), 1),
  **dict.fromkeys(("augment_labels", "vector"), 0),
}


def check_common(net: Any) -> None:
  """Checks what networks of every kind have: counts, dropout, dtype, kernel.

  Args:
    net: A network with ``dropout``, ``dtype`` and ``attention_kernel``.

  Raises:
    ValueError: With the setting, its value and what is allowed.
  """
  for name, least in LEAST.items():
    if getattr(net, name, None) is not None:
      _check_numbers(name, [getattr(net, name)], least=least)
  dropout, dtype, kernel = net.dropout, net.dtype, net.attention_kernel
  if isinstance(dropout, int | float) and not 0 <= dropout < 1:
    raise ValueError(f"dropout={dropout} must be in [0, 1)")
  try:
    floats = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
  except TypeError:
    floats = False
  if not floats:
    raise ValueError(f"dtype={dtype} is not float32, bfloat16 or the like")
  if kernel not in KERNELS:
    raise ValueError(f"attention_kernel={kernel!r} is not one of {KERNELS}")
