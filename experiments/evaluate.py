"""Measures how far a run's samples are from its data.

  python -m experiments.evaluate --workdir=runs/digits --num=1797

Prints the Frechet distance in pixel space, next to that of one random half of
the data to the other, and which classes the samples look like. The figures
are appended to evaluation.jsonl in the run directory with how they were made.
"""

import collections
import json
import sys

import numpy as np
from absl import flags

import diffusion_jax as dj
from experiments import assemble, cli, sample

MAX_DIMENSIONS = 3072  # of a covariance of pixels: a 32 x 32 colour image


def pixels(x: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C] -> float64 [N, H W C] in [-1, 1]."""
  return x.reshape(len(x), -1) / 127.5 - 1


def halves_distance(data: np.ndarray, splits: int = 5) -> float:
  """Frechet distance of one half of the data to the other, over splits."""
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


def main(argv: list[str]) -> None:
  """The command."""
  cli.tune_cpu()
  values = sample.define_flags(flags.FlagValues(), num=1797)
  cli.parse(argv, values)
  with cli.user_errors():
    plan = sample.plan(values)
    source = assemble.source(plan.config)
    if np.prod(source.image_shape) > MAX_DIMENSIONS:
      raise ValueError(
        f"images of {source.image_shape} have too many pixels for a "
        f"covariance; at most {MAX_DIMENSIONS}"
      )
  real = [source[i] for i in range(len(source))]
  data = pixels(np.stack([example["image"] for example in real]))
  samples = pixels(dj.images.to_uint8(sample.draw(plan)))
  index, distance = nearest(samples, data)
  labels = collections.Counter(int(real[i]["label"]) for i in index)
  row = {
    "step": plan.step,
    "samples": len(samples),
    "data": len(data),
    "fingerprint": source.fingerprint,
    "sampler": plan.sampler,
    "steps": plan.steps,
    "ema": plan.ema,
    "seed": values.seed,
    "features": "pixels in [-1, 1], rounded to uint8",
    "frechet": dj.metrics.frechet_distance(samples, data),
    "frechet_halves": halves_distance(data),
    "nearest_median": float(np.median(distance)),
  }
  if source.num_classes:
    row["classes"] = {
      name: labels[k] for k, name in enumerate(source.class_names)
    }
  with (plan.workdir / "evaluation.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\n")
  cli.say(
    f"Frechet distance in pixel space, {len(samples)} samples to "
    f"{len(data)} images: {row['frechet']:.3f}"
  )
  cli.say(
    "one random half of the data to the other (mean of 5): "
    f"{row['frechet_halves']:.3f}"
  )
  if source.num_classes:
    counts = ", ".join(f"{name}: {n}" for name, n in row["classes"].items())
    cli.say(f"class of the nearest image: {counts}")
  cli.say(f"appended to {plan.workdir / 'evaluation.jsonl'}")


if __name__ == "__main__":
  main(sys.argv)
