"""Metrics without a feature network: of pixels, and bits per dimension."""

import collections
import sys
from typing import Any

import jax
import numpy as np
import tqdm

import diffusion_jax as dj
from diffusion_jax.runs import console, networks, planning, processes

MAX_DIMENSIONS = 3072  # of a covariance of pixels: a 32 x 32 colour image


def pixels(x: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C] -> float64 [N, H W C] in [-1, 1]."""
  return x.reshape(len(x), -1) / 127.5 - 1


def check_dimensions(shape: tuple[int, ...]) -> None:
  """Checks that a covariance of the pixels is not too large.

  Raises:
    ValueError: If it is; says how many pixels are possible.
  """
  if np.prod(shape) > MAX_DIMENSIONS:
    raise ValueError(
      f"images of {shape} have too many pixels for a "
      f"covariance; at most {MAX_DIMENSIONS}"
    )


def check_shapes(
  ours: tuple[int, ...], theirs: tuple[int, ...], *, covariance: bool = True
) -> None:
  """Checks that the pixels of samples and data can be compared.

  Raises:
    ValueError: If they cannot; says why.
  """
  if ours != theirs:
    raise ValueError(
      f"samples of {ours} and data of {theirs} have different pixels; compare "
      "pictures of one shape, or use fid with `features=inception`"
    )
  if covariance:
    check_dimensions(ours)


def halves_distance(data: np.ndarray, splits: int = 5) -> float:
  """Frechet distance of one half of the data to the other, mean of splits."""
  rng = np.random.default_rng(0)
  distances = []
  for _ in range(splits):
    order = rng.permutation(len(data))
    half = len(data) // 2
    distances.append(
      dj.metrics.frechet_distance(data[order[:half]], data[order[half:]])
    )
  return float(np.mean(distances))


def nearest(x: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Index of, and distance to, the data point nearest to each row of x."""
  square = (data**2).sum(axis=1)
  indices = [
    np.argmin(square - 2 * part @ data.T, axis=1)
    for part in np.array_split(x, -(-len(x) // 256))
  ]
  index = np.concatenate(indices)
  return index, np.linalg.norm(x - data[index], axis=1)


def frechet(
  drawn: np.ndarray,
  source: dj.data.Source,
  quantise: str | None,
  key: jax.Array,
) -> dict[str, Any]:
  """The Frechet distance of samples to data, and statistics of both.

  Args:
    drawn: The samples, uint8 [N, H, W, C].
    source: The data.
    quantise: The rule by which the samples became bytes, if known.
    key: For the bootstrap.

  Returns:
    The figures.
  """
  real = [source[i] for i in range(len(source))]
  data = pixels(np.stack([example["image"] for example in real]))
  samples = pixels(drawn)
  index, distance = nearest(samples, data)
  labels = collections.Counter(int(real[i]["label"]) for i in index)
  row = {
    "features": f"pixels in [-1, 1], {quantise}ed to uint8"
    if quantise
    else "pixels in [-1, 1]",
    "frechet": dj.metrics.frechet_distance(samples, data),
    "frechet_std": dj.metrics.frechet_std(
      samples, dj.metrics.moments.moments(data).gaussian(), key
    ),
    "frechet_halves": halves_distance(data),
    "nearest_median": float(np.median(distance)),
  }
  console.say_first(
    f"Frechet distance in pixel space, {len(samples)} samples to "
    f"{len(data)} images: {row['frechet']:.3f} +- {row['frechet_std']:.2g}"
  )
  console.say_first(
    "one random half of the data to the other (mean of 5): "
    f"{row['frechet_halves']:.3f}"
  )
  if source.num_classes:
    row["classes"] = {
      name: labels[k] for k, name in enumerate(source.class_names)
    }
    counts = ", ".join(f"{name}: {n}" for name, n in row["classes"].items())
    console.say_first(f"class of the nearest image: {counts}")
  return row


def bits_per_dim(plan: planning.Plan, source: dj.data.Source) -> dict[str, Any]:
  """The variational bound of some images, over all steps."""
  source = dj.data.subset(source, plan.num)
  config, levels = plan.config, source.values.levels
  if levels is None:
    raise ValueError(
      f"bpd counts levels, and {source.name} has none ({source.values}); leave "
      "it out of `metrics`"
    )
  schedule = processes.schedule(config)
  conditions = networks.conditions(config, schedule, plan.image_shape)

  @jax.jit
  def bound(params, x0, y, known, key, first):
    predict = processes.predictor(config, schedule, plan.net, params)
    predict = dj.given(predict, conditions.of(x0, y, known))
    predict = dj.clipped(predict, schedule)
    return dj.likelihood.variational_bound(
      predict, schedule, x0, key, first=first, levels=levels
    )

  parts = []
  starts = range(0, plan.num, plan.options.batch)
  for start in tqdm.tqdm(starts, disable=not sys.stderr.isatty(), leave=False):
    # The last batch is padded, so that one program serves all.
    numbers = [min(start + k, plan.num - 1) for k in range(plan.options.batch)]
    real = [source[i] for i in numbers]
    x0 = source.values.floats(np.stack([example["image"] for example in real]))
    y = np.array([example["label"] for example in real])
    parts.append(
      bound(
        plan.params,
        x0,
        y,
        source.known(np.array(numbers)),
        jax.random.key(plan.options.seed),
        start,
      )
    )
  whole = jax.tree.map(lambda *x: np.concatenate(x)[: plan.num], *parts)
  error = whole.total.std() / np.sqrt(plan.num)
  console.say_first(
    f"variational bound of {plan.num} images, {schedule.T} terms each: "
    f"{whole.total.mean():.4f} +- {error:.4f} bits per dimension"
  )
  return {
    "terms": schedule.T,
    "variance": config.variance,
    "clip": True,
    "cdf": "tanh",
    "levels": f"{levels}, k / {(levels - 1) / 2:g} - 1",
    "bpd": float(whole.total.mean()),
    "bpd_standard_error": float(error),
    "bpd_prior": float(whole.prior.mean()),
    "bpd_decoder": float(whole.vb[:, -1].mean()),
  }
