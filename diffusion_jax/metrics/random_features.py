"""Features of images without a trained network."""

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
  image. It is for a Frechet distance during training: there are few enough
  features that 64 samples give a covariance of full rank, unlike for pixels,
  and nothing to download. The distances only compare previews of one kind of
  data with each other; they are not an FID.

  Args:
    x: Images in [-1, 1], of any size and any number of channels.
    key: For the filters: the same key gives the same network.
    features: The number of features.

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
