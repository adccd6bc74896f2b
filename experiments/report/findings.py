"""The sections of a report that need the network."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from diffusion_jax.runs import drawing, networks, planning, processes, restoring
from diffusion_jax.runs.training import monitor
from experiments.report import neighbours
from experiments.report.charts import Line, chart
from experiments.report.page import Section
from experiments.report.pictures import Picture, picture
from experiments.report.record import short_name

CURVE, MEMORY = "Loss against t", "Nearest pictures of the data"
STEPS = 24  # of a loss curve
IMAGES = 64  # of the data, for a loss curve
PICTURES = 50_000  # of the data, at most, to search for neighbours
TYPICAL = 512  # of them, whose own neighbours are searched
NEAREST = 3
SHOWN = 8  # samples, the closest to the data


class Pairing(NamedTuple):
  """A sample and its nearest images, side by side."""

  pictures: list[Picture | None]
  caption: str


class Neighbours(NamedTuple):
  """Samples beside the images of the data that are most like them.

  Attributes:
    samples: uint8 [B, H, W, C].
    pictures: uint8 [B, NEAREST, H, W, C], the nearest of the data.
    which: Their indices in the data, [B, NEAREST].
    distance: The distances to them, [B, NEAREST].
    typical: Distances from images of the data to their nearest other, [N].
    searched: How many images of the data were searched.
  """

  samples: np.ndarray
  pictures: np.ndarray
  which: np.ndarray
  distance: np.ndarray
  typical: np.ndarray
  searched: int


def loss_curves(
  plan: planning.Plan, source: dj.data.Source
) -> dict[str, dj.diagnostics.LossCurve]:
  """The loss against t of the raw parameters and of the plan's average.

  The loss is the training loss, without dropout; times are denser at the clean
  end, where it changes fast.
  """
  config = plan.config
  schedule = processes.schedule(config)
  loss_at = processes.loss_at(config, source.values)
  conditions = networks.conditions(config, schedule, plan.image_shape)
  if processes.is_continuous(config):
    t = jnp.asarray(dj.spacing.named(schedule, "log_snr", STEPS)[::-1, 0])
  else:
    parts = np.linspace(0, 1, STEPS) ** 2
    t = jnp.asarray(np.unique(np.rint(1 + (schedule.T - 1) * parts)), int)
  some = monitor.spread(len(source), IMAGES)
  real = source.gather(some)
  known = source.known(some)
  x0, y = (
    jnp.asarray(source.values.floats(real["image"])),
    jnp.asarray(real["label"]),
  )

  @jax.jit
  def curve(params):
    predict = processes.predictor(config, schedule, plan.net, params)
    return dj.diagnostics.loss_curve(
      dj.given(predict, conditions.of(x0, y, known)),
      schedule,
      x0,
      t,
      jax.random.key(plan.options.seed),
      loss_at=loss_at,
    )

  params: dict[str, Any] = {"raw": plan.params}
  if plan.ema != "raw":
    raw, _ = restoring.parameters(
      plan.workdir, config, plan.net, plan.image_shape, "raw", plan.step
    )
    params = {"raw": raw, f"ema{plan.ema}": plan.params}
  return {name: jax.device_get(curve(p)) for name, p in params.items()}


def neighbours_of(samples: np.ndarray, source: dj.data.Source) -> Neighbours:
  """Searches the images of the data that are most like the samples.

  Args:
    samples: [B, H, W, C] in [-1, 1].
    source: The data.

  Returns:
    The neighbours.
  """
  drawn, source = dj.images.to_uint8(samples), dj.data.shown(source)
  chosen = monitor.spread(len(source), PICTURES)
  look = functools.partial(neighbours.nearest, source=source, chosen=chosen)
  index, distance = look(drawn, num=min(NEAREST, len(source)))
  some = chosen[monitor.spread(len(chosen), TYPICAL)]
  _, typical = look(source.gather(some)["image"], own=some)
  found = source.gather(index.ravel())["image"]
  return Neighbours(
    samples=drawn,
    pictures=found.reshape(*index.shape, *drawn.shape[1:]),
    which=index,
    distance=distance,
    typical=typical[np.isfinite(typical[:, 0]), 0],
    searched=len(chosen),
  )


def loss_against_t(plan: planning.Plan, source: dj.data.Source) -> Section:
  """The section of the loss curves."""
  config = plan.config
  curves = loss_curves(plan, source)
  times = next(iter(curves.values())).t
  lines = [
    Line(
      short_name(name),
      curve.t,
      curve.mean,
      "other" if name == "raw" else "main",
      2 * curve.stderr,
    )
    for name, curve in curves.items()
  ]
  idle = config.loss.name == "simple" and config.target == "eps"
  note = (
    f"Mean over {min(len(source), IMAGES)} pictures of the data, ± 2 standard "
    f"errors, at step {plan.step:,}."
  )
  figure = chart(
    lines, title=CURVE, x_label="t", y_label="loss", log=True, note=note
  )
  words = (
    f"The loss that is trained on ({config.loss.name}, of {config.target}), "
    f"at each time t from almost clean ({times[0]:,.4g}) to noise "
    f"({times[-1]:,.4g}), on pictures that the network has learnt from. "
    + ("A network that always predicts 0 scores 1." * idle)
  )
  return Section(CURVE, "charts", {"charts": [figure], "aside": words})


def memory(plan: planning.Plan, source: dj.data.Source) -> Section:
  """The section of samples beside the images of the data nearest to them.

  Args:
    plan: How to draw the samples.
    source: The data of its last stage.

  Returns:
    The section.
  """
  found = neighbours_of(drawing.draw(plan), source)
  nearest, typical = found.distance[:, 0], float(np.median(found.typical))
  closest = np.argsort(nearest, kind="stable")[:SHOWN]
  names = " and ".join(stage.workdir.name for stage in plan.upsamplers)
  larger = f", upsampled by {names}" if names else ""
  how = (
    f"{len(nearest)} samples of step {plan.step:,} ({plan.options.sampler}, "
    f"{len(plan.pairs)} steps, seed {plan.options.seed}){larger}, of which the "
    f"{len(closest)} closest to the data are shown, each beside its {NEAREST} "
    "nearest of "
    f"{found.searched:,} pictures of the data."
  )
  verdict = (
    f"A sample is typically {np.median(nearest):.2f} away from the data, a "
    f"picture of the data {typical:.2f} from the nearest other (medians; "
    "Euclidean distances of pixels in [-1, 1]). Samples much closer than that "
    "are memorised; copies that are shifted or recoloured are not found this "
    "way."
  )
  lines = [
    _shares("the data", found.typical, "flat"),
    _shares("samples", nearest, "main"),
  ]
  distances = chart(
    lines,
    title="Distance to the nearest picture of the data",
    x_label="distance",
    y_label="share that is closer",
    note="Samples far to the left of the data would be copies.",
  )
  return Section(
    MEMORY,
    "memory",
    {
      "words": how,
      "pairings": [_beside(found, k, typical) for k in closest],
      "charts": [distances],
      "aside": verdict,
    },
  )


def _shares(name: str, values: np.ndarray, style: str) -> Line:
  """The fraction of the values below each of them."""
  x = np.sort(values)
  return Line(name, x, np.arange(1, len(x) + 1) / len(x), style)


def _beside(found: Neighbours, k: int, typical: float) -> Pairing:
  """One sample, its nearest images and the distances."""
  shown = [picture(_enlarged(found.samples[k]), f"Sample {k}", side=128)]
  for n, distance in enumerate(found.distance[k]):
    words = f"Picture {found.which[k, n]} of the data, {distance:.2f} away"
    shown.append(picture(_enlarged(found.pictures[k, n]), words, side=128))
  ratio = found.distance[k, 0] / typical if typical else np.inf
  return Pairing(
    shown, f"distance {found.distance[k, 0]:.2f}, {ratio:.2f} × typical"
  )


def _enlarged(x: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C] -> [H2, W2, 3]; enlarges small images by an integer."""
  shown = dj.images.displayable(x[None])[0]
  factor = max(1, 64 // min(shown.shape[:2]))
  return np.ascontiguousarray(
    shown.repeat(factor, axis=0).repeat(factor, axis=1)
  )


def film(plan: planning.Plan, num: int = 32) -> list[np.ndarray]:
  """Frames of a few samples on their way from noise."""
  plan = plan.asking(num=num, batch=num)
  walk = drawing.generator(plan).walk(plan.params, plan.key, 0)
  return [dj.images.grid(dj.parallel.fetch(x), columns=8) for x in walk]
