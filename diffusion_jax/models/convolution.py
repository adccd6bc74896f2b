"""Convolutions in the form that is fast on a CPU.

On a CPU, XLA is fast for convolutions of one layout and of stride 1. It brings
others into that layout, but not inside a loop: there, in a ``lax.scan`` over
training steps, micro-batches or guided sampling steps, a gradient takes fifty
times as long. So on a CPU

- the derivative is written such that its transpose, which is the gradient,
  comes out in that layout;
- strided convolutions, and those of images whose pixels are repeated, become
  several of stride 1, one for each phase: for each position of a pixel within a
  stride, or within the equal pixels. Nothing is computed twice or thrown away;
- those of volumes become convolutions of their slices, fifteen times as fast.

On other devices, all of this is ``lax.conv_general_dilated``.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from diffusion_jax.models.resampling import layout, upsample

Pads = Sequence[tuple[int, int]]


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
    lhs: [B, *size, C], of any rank.
    rhs: [*taps, C, C_out].
    window_strides: The stride of each axis of the size.
    padding: A name, or (low, high) of each axis.
    dimension_numbers: Those above; optional.
    lhs_dilation: Ones, for the fast form; so are those that follow.
    rhs_dilation: Ones.
    feature_group_count: 1.
    precision: Precision of the products.

  Returns:
    [B, *size_out, C_out].
  """
  if not _rewritten(lhs_dilation, rhs_dilation, feature_group_count):
    return lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation=lhs_dilation,
      rhs_dilation=rhs_dilation,
      dimension_numbers=dimension_numbers or layout(lhs.ndim - 2),
      feature_group_count=feature_group_count,
      precision=precision,
    )
  strides = tuple(window_strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:-1], rhs.shape[:-2], strides, padding
    )
  pads = tuple((int(low), int(high)) for low, high in padding)
  if set(strides) != {1}:
    return _strided(strides, pads, precision, lhs, rhs)
  return _convolve(pads, precision, lhs, rhs)


def conv_of_upsampled(
  lhs,
  rhs,
  window_strides: Sequence[int] | None = None,
  padding: str | Pads = "SAME",
  *,
  precision=None,
  **settings,
):
  """``conv_general_dilated`` of ``upsample(lhs)``, for ``nn.Conv`` to call.

  Of three taps along an axis two meet the same pixel of the small image:
  y[2 i] = k[0] x[i - 1] + (k[1] + k[2]) x[i] and
  y[2 i + 1] = (k[0] + k[1]) x[i] + k[2] x[i + 1]. A convolution of two taps
  an axis for each of the phases of y needs 2/3 of the multiplications, for
  each axis.

  Args:
    lhs: [B, *size, C].
    rhs: [3, ..., 3, C, C_out].
    window_strides: Ones.
    padding: "SAME".
    precision: Precision of the products.
    **settings: See ``conv_general_dilated``.

  Returns:
    [B, *(2 size), C_out].
  """
  window_strides = window_strides or (1,) * (lhs.ndim - 2)
  asked = {*rhs.shape[:-2]}, {*window_strides}, padding
  if asked != ({3}, {1}, "SAME") or not _rewritten(**settings):
    return conv_general_dilated(
      upsample(lhs),
      rhs,
      window_strides,
      padding,
      precision=precision,
      **settings,
    )
  return phases_of_two_taps(precision, lhs, rhs)


def _rewritten(
  lhs_dilation=None, rhs_dilation=None, feature_group_count=1, **_
) -> bool:
  """Whether to rewrite a convolution, as on a CPU."""
  dilations = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))}
  simple = dilations == {1} and feature_group_count == 1
  return simple and jax.default_backend() == "cpu"


# ------------------------------------------------------------------ phases
# Each a function to XLA and to JAX: one equation in the network's program.


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _strided(strides, pads, precision, x, kernel):
  """The sum over the phases of the image, each with the taps that meet it."""
  axes = zip(x.shape[1:-1], kernel.shape[:-2], strides, pads, strict=True)
  parts = []
  for phases in itertools.product(*(list(_phases(*axis)) for axis in axes)):
    firsts, taps, padding = zip(*phases, strict=True)
    phase = x[(slice(None), *map(_every, firsts, strides))]
    met = kernel[(*map(_every, taps, strides),)]
    parts.append(_convolve(padding, precision, phase, met))
  return functools.reduce(jnp.add, parts)


def _every(first: int, stride: int) -> slice:
  return slice(first, None, stride)


def _phases(
  size: int, taps: int, stride: int, pads: tuple[int, int]
) -> Iterator[tuple[int, int, tuple[int, int]]]:
  """First pixel, first tap and padding of each phase of one axis."""
  low, high = pads
  outputs = (size + low + high - taps) // stride + 1
  for start in range(min(stride, size)):
    tap = (start + low) % stride
    if tap < taps:
      pixels = len(range(start, size, stride))
      before = (start + low) // stride
      after = outputs + len(range(tap, taps, stride)) - 1 - before - pixels
      yield start, tap, (before, after)


@functools.partial(jax.jit, static_argnums=0)
def phases_of_two_taps(precision, x, kernel):
  """The phases of the output, each with the sums of taps that it needs."""
  b, *size, _ = x.shape

  def joined(kernel, pads):
    """All phases, axis by axis; ``pads`` has the axes that are done."""
    axis = len(pads)
    if axis == len(size):
      return _convolve(pads, precision, x, kernel)
    phases = [
      joined(taps, (*pads, sides)) for sides, taps in _taps_met(kernel, axis)
    ]
    return jnp.stack(phases, axis=axis + 2)

  doubled = (2 * side for side in size)
  return joined(kernel, ()).reshape(b, *doubled, kernel.shape[-1])


def _taps_met(kernel, axis):
  """Padding and two summed taps, for even and for odd outputs of an axis."""
  first, second, third = jnp.split(kernel, 3, axis)
  return (
    ((1, 0), jnp.concatenate([first, second + third], axis)),
    ((0, 1), jnp.concatenate([first + second, third], axis)),
  )


# ------------------------------------------------- stride 1 and its derivative


def _convolve(pads, precision, x, kernel):
  of_rank = _of_slices if len(pads) > 2 else _of_images
  return of_rank(pads, precision, x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_slices(pads, precision, x, kernel):
  """One rank less: slices that meet the same output are its channels."""
  (low, high), *pads = pads
  around = [(0, 0, 0), (low, high, 0)] + [(0, 0, 0)] * (x.ndim - 2)
  x = lax.pad(x, jnp.zeros((), x.dtype), around)
  taps = kernel.shape[0]
  depth = x.shape[1] - taps + 1
  met = jnp.concatenate([x[:, k : k + depth] for k in range(taps)], axis=-1)
  kernel = jnp.moveaxis(kernel, 0, -3)  # [*taps, taps, C, C_out]
  kernel = kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])
  slices = met.reshape(-1, *met.shape[2:])
  y = _convolve(tuple(pads), precision, slices, kernel)
  return y.reshape(-1, depth, *y.shape[1:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _of_images(pads, precision, x, kernel):
  rank = x.ndim - 2
  return lax.conv_general_dilated(
    x, kernel, (1,) * rank, pads, dimension_numbers=layout(rank),
    precision=precision,
  )  # fmt: skip


def _derivative(pads, precision, primals, tangents):
  """d(x * k) = dx * k + x * dk."""
  rank = len(pads)
  size = "".join(map(str, range(rank)))
  convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1,) * rank,
    padding=pads,
    precision=precision,
  )
  (x, kernel), (dx, dk) = primals, tangents
  parts = []
  if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
    # A transpose swaps in and out of the kernel: here they are swapped already.
    parts.append(
      convolve(
        dx, kernel.swapaxes(-2, -1), dimension_numbers=layout(rank, "OI")
      )
    )
  if not isinstance(dk, jax.custom_derivatives.SymbolicZero):
    # A transpose puts channels in the place of examples in x, and the output
    # in that of the kernel.
    y = convolve(
      x.swapaxes(0, -1),
      jnp.moveaxis(dk, -2, 0),
      dimension_numbers=(f"C{size}N", f"I{size}O", f"{size}NC"),
    )
    parts.append(jnp.moveaxis(y, -2, 0))
  y = functools.reduce(jnp.add, parts)
  return _of_images(pads, precision, x, kernel), y


_of_images.defjvp(_derivative, symbolic_zeros=True)
