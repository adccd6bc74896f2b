"""The data that samples are compared with."""

import dataclasses
import pathlib

import diffusion_jax as dj


@dataclasses.dataclass(frozen=True)
class Reference:
  """The data that samples are compared with.

  Attributes:
    name: For people.
    fingerprint: Of its contents.
    source: Its pictures, if they are known.
    gaussians: Its statistics by feature name, of those that are known.
  """

  name: str
  fingerprint: str
  source: dj.data.Source | None
  gaussians: dict[str, dj.metrics.Gaussian]

  @property
  def pictures(self) -> dj.data.Source:
    """The source.

    Raises:
      ValueError: If only statistics are known.
    """
    if self.source is None:
      raise ValueError(
        f"{self.name} has statistics of Inception's features but no pictures, "
        "which this needs; name pictures as `reference`"
      )
    return self.source


def named(name: str) -> Reference:
  """What `reference` names: an .npz of statistics, or pictures.

  Raises:
    ValueError: If it is neither.
  """
  path = pathlib.Path(name).expanduser()
  if path.suffix != ".npz" or not path.is_file():
    return of_source(dj.data.load(name))
  found = dj.metrics.read_reference(path)
  source = dj.data.load(path) if found.has_images else None
  return Reference(path.name, found.fingerprint, source, found.gaussians)


def of_source(source: dj.data.Source) -> Reference:
  """A source as what to compare with."""
  return Reference(source.name, source.fingerprint, source, {})
