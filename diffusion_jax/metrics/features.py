"""From images to feature vectors, on all devices."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from diffusion_jax import parallel

# Images to their feature vectors, or to a dict of several kinds. The arrays of
# a jax.tree_util.Partial are arguments, not constants of the program.
Network = Callable[[Any], Any]


def pixels(images: UInt8[Array, "B H W C"]) -> Float[Array, "B D"]:
  """Pixels as features: bytes k as k / 127.5 - 1, flattened.

  Raises:
    ValueError: If they are not bytes: floats may be in [-1, 1] already.
  """
  if images.dtype != np.uint8:
    raise ValueError(
      f"images are {images.dtype}; pass bytes, see images.to_uint8"
    )
  return images.reshape(len(images), -1) / 127.5 - 1


def extract(
  network: Network,
  batches: Iterable[UInt8[np.ndarray, "B H W C"]],
  *,
  batch_size: int = 64,
  mesh: Mesh | None = None,
  jit: bool = True,
) -> Iterator[Any]:
  """Features of images, batch by batch, in order.

  Args:
    network: ``images -> features``.
    batches: Images of one shape, at most ``batch_size`` in a batch. Under
      ``jax.distributed`` every process passes the same.
    batch_size: Images at a time. Batches are padded to it, rounded up to a
      multiple of the devices, so that one program serves all.
    mesh: The devices; by default all.
    jit: False for a network that JAX cannot trace, such as one in NumPy.

  Yields:
    The network's output for each batch, as NumPy arrays.

  Raises:
    ValueError: If a batch is empty or larger than ``batch_size``.
  """
  mesh = parallel.data_mesh() if mesh is None else mesh
  size = -(-batch_size // mesh.size) * mesh.size
  run = _compiled(network, size, mesh) if jit else network
  for images in batches:
    count = len(images)
    if not 1 <= count <= batch_size:
      raise ValueError(
        f"a batch of {count} pictures must have 1..{batch_size=}"
      )
    found = run(images)
    yield jax.tree.map(lambda x: np.asarray(x)[:count], found)  # noqa: B023


def _compiled(network: Network, size: int, mesh: Mesh) -> Network:
  """The network on all devices, for batches of up to ``size``."""
  split, everywhere = parallel.split(mesh), parallel.replicated(mesh)
  if not isinstance(network, jax.tree_util.Partial):
    network = jax.tree_util.Partial(network)
  network = jax.device_put(network, everywhere)
  run = jax.jit(lambda f, x: f(x), out_shardings=everywhere)

  def filled(images):
    last = np.repeat(images[-1:], size - len(images), axis=0)
    return run(network, jax.device_put(np.concatenate([images, last]), split))

  return filled
