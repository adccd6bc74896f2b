"""Measures a run: how far its samples are from its data, how likely the data.

  python -m experiments.evaluate --workdir=runs/digits
  python -m experiments.evaluate --workdir=runs/digits --metrics=frechet,bpd

"frechet" is the Frechet distance in pixel space, next to that of one random
half of the data to the other, and which classes the samples look like. "bpd"
is the variational bound on -log2 p(x_0) in bits per dimension. "agreement" is
how often a classifier sees the class that was asked for. The figures
are appended to evaluation.jsonl in the run directory with how they were made.
"""

import collections
import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
import sklearn.svm
import tqdm
from absl import flags

import diffusion_jax as dj
from experiments import assemble, cli, devices, sample

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


def frechet(plan: sample.Plan, source: dj.data.Source) -> dict[str, Any]:
  """The Frechet distance of samples to data, and what they look like.

  Raises:
    ValueError: If the images have too many pixels for a covariance.
  """
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
    "samples": len(samples),
    "sampler": plan.sampler,
    "steps": len(plan.pairs),
    "spacing": plan.spacing,
    "eta": plan.eta,
    "features": "pixels in [-1, 1], rounded to uint8",
    "frechet": dj.metrics.frechet_distance(samples, data),
    "frechet_halves": halves_distance(data),
    "nearest_median": float(np.median(distance)),
  }
  cli.say(
    f"Frechet distance in pixel space, {len(samples)} samples to "
    f"{len(data)} images: {row['frechet']:.3f}"
  )
  cli.say(
    "one random half of the data to the other (mean of 5): "
    f"{row['frechet_halves']:.3f}"
  )
  if source.num_classes:
    row["classes"] = {
      name: labels[k] for k, name in enumerate(source.class_names)
    }
    counts = ", ".join(f"{name}: {n}" for name, n in row["classes"].items())
    cli.say(f"class of the nearest image: {counts}")
  return row


def bits_per_dim(plan: sample.Plan, source: dj.data.Source) -> dict[str, Any]:
  """The variational bound of the first images, over all steps."""
  config = plan.config
  schedule = assemble.schedule(config)

  @jax.jit
  def bound(params, x0, y, key, first):
    told = assemble.known(config, plan.net, x0, y)
    return dj.likelihood.variational_bound(
      lambda x_t, t: plan.net.apply({"params": params}, x_t, t, **told),
      schedule,
      x0,
      key,
      target=config.target,
      variance=config.variance,
      clip=True,
      first=first,
    )

  parts = []
  starts = range(0, plan.num, plan.batch)
  for start in tqdm.tqdm(starts, disable=not sys.stderr.isatty(), leave=False):
    # The last batch is filled up, so that one program serves all.
    numbers = [min(start + k, plan.num - 1) for k in range(plan.batch)]
    real = [source[i] for i in numbers]
    x0 = dj.images.from_uint8(np.stack([example["image"] for example in real]))
    y = np.array([example["label"] for example in real])
    parts.append(
      bound(
        plan.params,
        x0,
        y,
        jax.random.key(plan.seed),
        start,
      )
    )
  whole = jax.tree.map(lambda *x: np.concatenate(x)[: plan.num], *parts)
  error = whole.total.std() / np.sqrt(plan.num)
  cli.say(
    f"variational bound of {plan.num} images, {schedule.T} terms each: "
    f"{whole.total.mean():.4f} +- {error:.4f} bits per dimension"
  )
  return {
    "images": plan.num,
    "terms": schedule.T,
    "variance": config.variance,
    "clip": True,
    "cdf": "tanh",
    "levels": "256, k / 127.5 - 1",
    "bpd": float(whole.total.mean()),
    "bpd_standard_error": float(error),
    "bpd_prior": float(whole.prior.mean()),
    "bpd_decoder": float(whole.vb[:, -1].mean()),
  }


def agreement(plan: sample.Plan, source: dj.data.Source) -> dict[str, Any]:
  """How often a classifier sees the class that was asked for.

  A support vector machine that learnt one half of the data; what it gets
  right of the other half is given beside it.

  Raises:
    ValueError: If the run's network is told no classes.
  """
  count = plan.config.model.num_classes
  if plan.judge is not None:
    count = plan.judge.net.num_labels
  if count is None:
    raise ValueError(
      "agreement needs a network that is told classes, or a --classifier"
    )
  real = source.gather(np.random.default_rng(0).permutation(len(source)))
  x, y = pixels(real["image"]), real["label"]
  half = len(x) // 2
  judge = sklearn.svm.SVC(C=10).fit(x[:half], y[:half])
  samples = pixels(dj.images.to_uint8(sample.draw(plan)))
  asked = np.array(plan.classes or range(count))
  asked = asked[np.arange(len(samples)) % len(asked)]
  row = {
    "samples": len(samples),
    "agreement": float((judge.predict(samples) == asked).mean()),
    "judge": "SVC(C=10) of pixels, on one half of the data",
    "judge_accuracy": float(judge.score(x[half:], y[half:])),
  }
  cli.say(
    f"{row['agreement']:.1%} of {len(samples)} samples are of the class asked "
    f"for, guidance {plan.guidance}; of the data that the judge had not seen "
    f"it gets {row['judge_accuracy']:.1%} right"
  )
  return row


METRICS = {"frechet": frechet, "bpd": bits_per_dim, "agreement": agreement}


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = sample.define_flags(flags.FlagValues(), num=None)
  flags.DEFINE_list(
    "metrics", "frechet", f"of {', '.join(METRICS)}", flag_values=values
  )
  cli.parse(argv, values)
  with cli.user_errors():
    for name in values.metrics:
      assemble.named("--metrics", name, METRICS)
    plan = sample.plan(values)
    source = assemble.source(plan.last.config)
    num = values.num or len(source)
    if "bpd" in values.metrics and plan.upsamplers:
      raise ValueError(
        "bpd is that of one model: measure the run and its --upsampler apart"
      )
    if "bpd" in values.metrics and num > len(source):
      raise ValueError(
        f"--num={num} images were asked for, the data have {len(source)}"
      )
    plan = dataclasses.replace(plan, num=num, batch=min(plan.batch, num))
    row = {
      "step": plan.step,
      "data": len(source),
      "fingerprint": source.fingerprint,
      "ema": plan.ema,
      "seed": plan.seed,
      "guidance": plan.guidance,
      "classifier": None if plan.judge is None else plan.judge.name,
      "upsamplers": [str(stage.workdir) for stage in plan.upsamplers],
      "low_res_noise": values.low_res_noise,
    }
    for name in values.metrics:
      row |= METRICS[name](plan, source)
  with (plan.workdir / "evaluation.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\n")
  cli.say(f"appended to {plan.workdir / 'evaluation.jsonl'}")


if __name__ == "__main__":
  main(sys.argv)
