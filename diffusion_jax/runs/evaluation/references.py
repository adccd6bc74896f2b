"""The data that samples are compared with."""

import dataclasses
import pathlib

import diffusion_jax as dj
from diffusion_jax.data.values import BYTES, Values
from diffusion_jax.runs import datasets


@dataclasses.dataclass(frozen=True)
class Reference:
  """The data that samples are compared with.

  Attributes:
    name: Its name in output.
    fingerprint: Fingerprint of its contents.
    source: Its images, if it has any.
    gaussians: Its statistics, by feature name.
  """

  name: str
  fingerprint: str
  source: dj.data.Source | None
  gaussians: dict[str, dj.metrics.Gaussian]

  @property
  def pictures(self) -> dj.data.Source:
    """The images.

    Raises:
      ValueError: If it has only statistics.
    """
    if self.source is None:
      raise ValueError(
        f"{self.name} has statistics of Inception's features but no pictures, "
        "which this needs; name pictures as `reference`"
      )
    return self.source


def named(name: str, values: Values = BYTES) -> Reference:
  """The option `reference`: an .npz of statistics, or images.

  Args:
    name: Its name or path.
    values: The units of the run's data.

  Raises:
    ValueError: If it is neither.
  """
  path = pathlib.Path(name).expanduser()
  if path.suffix != ".npz" or not path.is_file():
    return of_source(datasets.in_units_of(values, "reference", name))
  found = dj.metrics.read_reference(path)
  source = None
  if found.has_images:
    source = datasets.in_units_of(values, "reference", path)
  return Reference(path.name, found.fingerprint, source, found.gaussians)


def of_source(source: dj.data.Source) -> Reference:
  """A data source as a reference."""
  return Reference(source.name, source.fingerprint, source, {})
