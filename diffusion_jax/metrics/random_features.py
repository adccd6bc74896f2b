"""Features of pictures that need no trained network."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.models.resampling import layout


def random_features(
  x: Float[Array, "B *size C"], key: Key[Array, ""], *, features: int = 32
) -> Float[Array, "B features"]:
  """Mean responses of a small network of fixed random filters.

  Convolutions of 3 taps an axis and ReLUs without biases, each after the first
  at half the size, until the shortest side is at most 4; then the mean over the
  picture. For a Frechet distance while training: few enough features that 64
  samples fill their covariance, which pixels are not, and nothing to
  download. The distances compare previews of one kind of data with each other
  and mean nothing elsewhere; they are no FID.

  Args:
    x: Images in [-1, 1], of any size and any number of channels.
    key: Of the filters: the same key is the same network.
    features: How many.

  Returns:
    The features, linear in the contrast: those of 2 x are twice those of x.
  """
  rank, side, layer = x.ndim - 2, min(x.shape[1:-1]), 0
  while layer == 0 or side > 4:
    shape = (*(3,) * rank, x.shape[-1], features)
    # Keeps the variance from layer to layer (He et al. 2015, eq. 10).
    std = (2 / (3**rank * x.shape[-1])) ** 0.5
    kernel = std * jax.random.normal(jax.random.fold_in(key, layer), shape)
    stride = 2 if layer else 1
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride,) * rank,
      "SAME",
      dimension_numbers=layout(rank),
    )
    x = jax.nn.relu(x)
    side, layer = -(-side // stride), layer + 1
  return jnp.asarray(x.mean(axis=tuple(range(1, x.ndim - 1))))
