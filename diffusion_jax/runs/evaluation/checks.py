"""Whether the metrics can be computed of these samples and these data."""

from collections.abc import Sequence

import diffusion_jax as dj
from diffusion_jax.data.values import BYTES
from diffusion_jax.runs import planning, processes
from diffusion_jax.runs.evaluation import references


def check_given(metrics, given: dj.data.Source, data, num: int) -> None:
  """Checks that the metrics are possible for given samples."""
  if "bpd" in metrics:
    raise ValueError("bpd asks the network of a `workdir`; leave `samples` out")
  if "agreement" in metrics:
    _check_classes(range(given.num_classes), data)
  if num > len(given):
    raise ValueError(
      f"`num={num}` images were asked for, `samples` has {len(given)}"
    )


def check_plan(metrics, plan: planning.Plan, data, num: int) -> None:
  """Checks that the metrics are possible for the run."""
  if "agreement" in metrics:
    _check_classes(plan.classes, data)
  if "bpd" not in metrics:
    return
  if plan.upsamplers:
    raise ValueError(
      "bpd is that of one model: measure the run and its `upsampler` apart"
    )
  check_bits(plan, data.pictures)
  if num > len(data.pictures):
    raise ValueError(
      f"`num={num}` images were asked for, the data have {len(data.pictures)}"
    )


def check_bytes(metrics, given, data: references.Reference) -> None:
  """Raises for metrics that need bytes, if the values are not bytes."""
  of_pictures = set(metrics) - {"bpd"}
  for source in (given, data.source):
    if source is not None and source.values != BYTES and of_pictures:
      measured = "only bpd is" if source.values.levels else "none is"
      raise ValueError(
        f"{source.name} has values {source.values}: {measured} measured of "
        "these; metrics are of pictures of bytes, and dj.metrics takes floats"
      )


def _check_classes(asked: Sequence[int], data: references.Reference) -> None:
  """Checks that samples have classes, and the data those classes."""
  if not len(asked):
    raise ValueError(
      "agreement needs a class-conditional network, a `classifier`, or "
      "`samples` with labels"
    )
  classes = data.pictures.num_classes
  if max(asked) >= classes or classes < 2:
    raise ValueError(
      f"agreement: samples are of class {max(asked)}, {data.name} has "
      f"{classes} classes; compare with labelled data of all, two at least"
    )


def check_bits(plan: planning.Plan, pictures: dj.data.Source) -> None:
  """Checks that the run's time is discrete, and the data are as its own."""
  if processes.is_continuous(plan.config):
    raise ValueError(
      "bpd is a sum over discrete steps, and schedule.name="
      f"{plan.config.schedule.name} is continuous: leave it out of `metrics`; "
      "in Python, dj.likelihood.probability_flow has its bits"
    )
  ours = {"image_shape": plan.image_shape}
  if plan.config.model.num_classes is not None:
    ours["num_classes"] = plan.config.model.num_classes
  for what, value in ours.items():
    if getattr(pictures, what) != value:
      raise ValueError(
        f"bpd: {pictures.name} has {what} {getattr(pictures, what)}, "
        f"{plan.workdir} {value}"
      )
