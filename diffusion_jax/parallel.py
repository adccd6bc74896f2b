"""Devices: one mesh, batches split over it, everything else replicated."""

from typing import Any

import jax
import numpy as np
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


def check_batch(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
  """Refuses a batch that cannot be cut evenly.

  Raises:
    ValueError: Naming the batch size, its divisor and the nearest sizes.
  """
  unit = mesh.size * micro_batches
  if batch_size < 1 or batch_size % unit:
    below = max(batch_size // unit, 1) * unit
    raise ValueError(
      f"{batch_size=} must be a multiple of {unit} ({mesh.size} devices x "
      f"{micro_batches} micro-batches): the nearest are {below} and "
      f"{below + unit}"
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts this process's rows of a batch on its devices.

  Args:
    batch: A pytree of arrays, the rows that this process read.
    mesh: The mesh.

  Returns:
    Global arrays, split over the first axis.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(split(mesh), x), batch
  )
