"""A convolution whose gradients are fast on a CPU inside loops, too.

For a CPU, XLA has fast code for convolutions of one layout. It brings others
into it, but not inside a loop: there, in a ``lax.scan`` over training steps,
micro-batches or a guided walk, a gradient takes fifty times as long. So on a
CPU the derivative is written such that its transpose, which is the gradient,
comes out in that layout. Where JAX runs on anything else, all of this is
``lax.conv_general_dilated``.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Pads = Sequence[tuple[int, int]]

# Examples, height, width, channels; a kernel has height, width, in and out.
_USUAL = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
  lhs,
  rhs,
  window_strides: Sequence[int],
  padding: str | Pads,
  *,
  dimension_numbers=None,
  lhs_dilation=None,
  rhs_dilation=None,
  feature_group_count: int = 1,
  precision=None,
):
  """``jax.lax.conv_general_dilated``, for ``nn.Conv`` to call.

  Args:
    lhs: [B, H, W, C].
    rhs: [h, w, C, C_out].
    window_strides: Of height and width.
    padding: A name, or (low, high) of height and width.
    dimension_numbers: Those above, which need not be said.
    lhs_dilation: Left as it is with ones, as is all that follows.
    rhs_dilation: Ones.
    feature_group_count: 1.
    precision: Of the products.

  Returns:
    [B, H_out, W_out, C_out].
  """
  dilated = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}
  if dilated or feature_group_count != 1 or jax.default_backend() != "cpu":
    return lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation=lhs_dilation,
      rhs_dilation=rhs_dilation,
      dimension_numbers=dimension_numbers or _USUAL,
      feature_group_count=feature_group_count,
      precision=precision,
    )
  strides = tuple(window_strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:3], rhs.shape[:2], strides, padding
    )
  pads = tuple((int(low), int(high)) for low, high in padding)
  return _convolve(strides, pads, precision, lhs, rhs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _convolve(strides, pads, precision, x, kernel):
  return lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=_USUAL, precision=precision
  )


def _derivative(strides, pads, precision, primals, tangents):
  """d(x * k) = dx * k + x * dk."""
  unstrided = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding=pads,
    precision=precision,
  )
  down, across = strides

  (x, kernel), (dx, dk) = primals, tangents
  parts = []
  if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
    # Transposed, in and out change places in the kernel: here they already
    # have.
    parts.append(
      unstrided(
        dx, kernel.swapaxes(2, 3), dimension_numbers=("NHWC", "HWOI", "NHWC")
      )
    )
  if not isinstance(dk, jax.custom_derivatives.SymbolicZero):
    # Transposed, channels take the place of examples in x, and the output
    # that of the kernel.
    y = unstrided(
      x.transpose(3, 1, 2, 0),
      dk.transpose(2, 0, 1, 3),
      dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )
    parts.append(y.transpose(2, 0, 1, 3))
  y = functools.reduce(jnp.add, parts)
  return _convolve(strides, pads, precision, x, kernel), y[:, ::down, ::across]


_convolve.defjvp(_derivative, symbolic_zeros=True)
