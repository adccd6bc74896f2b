"""Devices: one mesh, batches split over it, parameters copied or split too.

Everything is one program on one mesh, from a laptop's CPU to a pod: this module
defines how arrays are split, and XLA adds the communication.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh(devices=None) -> Mesh:
  """A mesh of all devices with one axis, "data"."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), ("data",))


def split(mesh: Mesh) -> NamedSharding:
  """The first axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds a copy."""
  return NamedSharding(mesh, PartitionSpec())


def split_block(mesh: Mesh) -> NamedSharding:
  """A block of batches, [K, B, ...]: the second axis is split."""
  return NamedSharding(mesh, PartitionSpec(None, "data"))


def fully_split(tree: Any, mesh: Mesh, *, least: int = 1024) -> Any:
  """Shardings that give each of N devices 1/N of every large array.

  "Fully sharded data parallel", ZeRO stage 3 (Rajbhandari et al. 2020): the
  state of training is stored in parts, and parameters are gathered only while
  they are used, see ``gather``.

  Args:
    tree: Arrays or their shapes.
    mesh: The devices.
    least: Arrays of fewer elements are copied to every device: splitting them
      would save nothing and cost communication.

  Returns:
    A tree of shardings. Each array is split along its longest axis that N
    divides (the last, if several are equal); an array without one is copied.
  """

  def one(x):
    axes = [n for n, size in enumerate(x.shape) if size % mesh.size == 0]
    if not axes or np.prod(x.shape) < least:
      return replicated(mesh)
    longest = max(axes, key=lambda n: (x.shape[n], n))
    spec = [None] * longest + ["data"]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(one, tree)


def gather(mesh: Mesh) -> Callable[[Any], Any]:
  """Gathers parameters that are ``fully_split``, in a compiled step.

  Returns:
    ``params -> params``, whole on every device. Each device keeps only the part
    of the gradient that it updates, so the sum over devices is the step's only
    reduction.
  """

  def constrain(tree, shardings):
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)

  @jax.custom_vjp
  def whole(params):
    return constrain(params, jax.tree.map(lambda _: replicated(mesh), params))

  def backward(_, gradient):
    return (constrain(gradient, fully_split(gradient, mesh)),)

  whole.defvjp(lambda params: (whole(params), None), backward)
  return whole


def check_batch(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
  """Checks that a batch can be split evenly.

  Raises:
    ValueError: If not; has the batch size, its divisor and the nearest sizes.
  """
  if micro_batches < 1:
    raise ValueError(f"{micro_batches=} must be at least 1")
  unit = mesh.size * micro_batches
  if batch_size < 1 or batch_size % unit:
    below = max(batch_size // unit, 1) * unit
    raise ValueError(
      f"{batch_size=} must be a multiple of {unit} ({mesh.size} devices x "
      f"{micro_batches} micro-batches): the nearest are {below} and "
      f"{below + unit}"
    )


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Puts this process's part of each array on its devices.

  Args:
    tree: A pytree of arrays, the rows that this process read.
    sharding: Sharding of the whole array, such as ``split(mesh)``.

  Returns:
    Global arrays.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), tree
  )


def fetch(tree: Any) -> Any:
  """The whole of each array as NumPy, on every process.

  A process sees only its own devices; the others send it the rest.
  """

  def one(x):
    if x.is_fully_addressable or x.is_fully_replicated:
      return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  return jax.tree.map(one, tree)


def bytes_per_device(tree: Any) -> int:
  """Bytes that these arrays, or their shapes, take on each device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
