"""FLOPs of a program as written, independent of the device."""

import math
from typing import Any

from jax.extend import core

# What is computed of what is written, for each axis of the size, by the name
# of the function that does (``diffusion_jax/models/convolution.py``).
SHARES = {"phases_of_two_taps": (2, 3)}


def count(jaxpr: Any) -> int:
  """FLOPs of convolutions and of products of matrices.

  These are nearly all of a network's FLOPs, and the ones that are usually
  counted: two for each multiplication and its addition, including those with
  the zeros around an image, and those that a CPU saves because pixels are
  equal. The body of a scan counts as often as it runs, that of another loop
  once, and of a condition the most expensive branch.

  Args:
    jaxpr: ``jax.make_jaxpr(f)(...).jaxpr``.

  Returns:
    Their number.
  """
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "conv_general_dilated":
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    # The gradient of a stride puts zeros between pixels, which cost nothing.
    spread = math.prod(params["lhs_dilation"])
    return 2 * out.size * kernel.size // (features * spread)
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
  inner = map(count, core.jaxprs_in_params(params))
  if name == "cond":
    return max(inner)
  times = params["length"] if name == "scan" else 1
  if params.get("name") not in SHARES:
    return sum(inner) * times
  computed, of = SHARES[params["name"]]
  axes = equation.outvars[0].aval.ndim - 2
  return sum(inner) * times * of**axes // computed**axes
