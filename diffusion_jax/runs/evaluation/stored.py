"""Samples that survive an interruption: bytes on disk, batch by batch.

A batch is written when it is done, to a folder of the run whose name depends on
everything that determines it. The same command again finds these batches and
draws the rest; as image k is a function of the seed and of k, the result is the
same.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

import diffusion_jax as dj
from diffusion_jax.data import sources
from diffusion_jax.runs import (
  console,
  directory,
  drawing,
  planning,
  samplers,
)
from diffusion_jax.runs.generate import Generator

DESCRIPTION = "samples.json"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stored(sources.Source):
  """Samples in a folder, a file for each batch.

  Attributes:
    folder: The folder.
    batch: Samples in a file.
    length: Samples in total; the last file may have more.
    asked: The classes that are drawn in turn, which are the labels; empty if
      the network is unconditional.
  """

  folder: pathlib.Path
  batch: int
  length: int
  asked: tuple[int, ...] = ()

  def __len__(self) -> int:
    """Number of samples."""
    return self.length

  def path(self, first: int) -> pathlib.Path:
    """The file of the batch that begins with sample ``first``."""
    return self.folder / f"{first:08}.npy"

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """See ``Source.gather``."""
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    for number in np.unique(indices // self.batch):
      here = indices // self.batch == number
      stored = np.load(self.path(number * self.batch), mmap_mode="r")
      images[here] = stored[indices[here] % self.batch]
    asked = np.array(self.asked or (0,), np.int32)
    return {"image": images, "label": asked[indices % len(asked)]}

  def remove(self) -> None:
    """Deletes the files."""
    shutil.rmtree(self.folder)
    with contextlib.suppress(OSError):  # The folder has other samples, too.
      self.folder.parent.rmdir()


def stages(plan: planning.Plan) -> list[planning.Plan]:
  """All stages of a cascade, each to draw whole batches of one size."""
  unit = jax.device_count()  # a batch fills all devices
  batch = -(-plan.options.batch // unit) * unit
  return [
    stage.asking(num=plan.num, batch=batch)
    for stage in (plan, *plan.upsamplers)
  ]


def generators(plan: planning.Plan) -> list[Generator]:
  """The generators of the stages, for any parameters of their networks."""
  return [drawing.generator(stage) for stage in stages(plan)]


@contextlib.contextmanager
def drawn(
  plan: planning.Plan,
  generators: Sequence[Generator],
  *,
  keep: bool = False,
) -> Iterator[Stored]:
  """Samples on disk, to be measured; draws those that are missing.

  They are deleted at the end, unless something goes wrong: then the same
  command continues with them.

  Args:
    plan: What to draw.
    generators: See the function of that name.
    keep: Whether to keep them.

  Yields:
    The samples.

  Raises:
    ValueError: If another process works on the same ones.
  """
  draws = list(zip(stages(plan), generators, strict=True))
  stored = _open(draws[0][0])
  # Else another process could delete what this one measures.
  with directory.alone(
    stored.folder,
    f"another process is measuring the same samples, in {stored.folder}: wait "
    "for it, or pass another `seed`",
  ):
    _draw(stored, draws)
    yield stored
    if jax.process_index() == 0 and not keep:
      stored.remove()


def _draw(stored: Stored, draws: list[tuple[planning.Plan, Generator]]) -> None:
  """Draws the missing batches, with a progress bar.

  If there are several processes, the first writes to the shared directory.
  """
  for stage, _ in draws:
    drawing.announce(stage)
  quantise = draws[0][0].options.quantise
  starts = range(0, stored.length, stored.batch)
  missing = [first for first in starts if not stored.path(first).is_file()]
  # No process writes before all have looked.
  multihost_utils.sync_global_devices("stored samples looked at")
  there = min((len(starts) - len(missing)) * stored.batch, stored.length)
  if there:
    console.say_first(f"{there} of them are there already, in {stored.folder}")
  with tqdm.tqdm(
    total=stored.length,
    initial=there,
    unit="image",
    disable=not sys.stderr.isatty() or jax.process_index() > 0,
    leave=False,
  ) as bar:
    for first in missing:
      images = dj.images.to_uint8(_batch(draws, first), quantise)
      if jax.process_index() == 0:
        _write(stored.path(first), images)
      bar.update(min(stored.batch, stored.length - bar.n))
  multihost_utils.sync_global_devices("stored samples written")


def _open(plan: planning.Plan) -> Stored:
  """The folder of these samples, with their description."""
  text = _text(plan)
  fingerprint = sources.fingerprint(text)
  folder = plan.workdir / "evaluation" / fingerprint
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    directory.replace(folder / DESCRIPTION, text)
  return Stored(
    name=f"samples of {plan.workdir}",
    image_shape=plan.last.image_shape,
    fingerprint=fingerprint,
    folder=folder,
    batch=plan.options.batch,
    length=plan.num,
    asked=plan.classes,
  )


def _batch(
  draws: list[tuple[planning.Plan, Generator]], first: int
) -> np.ndarray:
  """One batch through all stages of a cascade: [batch, H, W, C]."""
  images = None
  for stage, generator in draws:
    if images is not None:
      generator.low_res = images
    walk = generator.walk(stage.params, stage.key, first)
    images = dj.parallel.fetch(collections.deque(walk, maxlen=1)[0])
  assert images is not None
  return images


def _write(path: pathlib.Path, images: np.ndarray) -> None:
  """Writes a file atomically."""
  partial = path.with_suffix(".part")
  with partial.open("wb") as file:
    np.save(file, images)
  partial.replace(path)


def identity(plan: planning.Plan) -> str:
  """A digest of everything that determines the bytes of sample k."""
  return sources.fingerprint(_text(stages(plan)[0]))


def _text(plan: planning.Plan) -> str:
  return json.dumps(describe(plan), indent=2, sort_keys=True) + "\n"


def describe(plan: planning.Plan) -> dict[str, Any]:
  """Everything that determines the bytes of sample k."""
  return {
    "quantise": plan.options.quantise,
    "seed": plan.options.seed,
    # Results depend on the batch in their last digits.
    "batch": plan.options.batch,
    "stages": [_describe(stage) for stage in (plan, *plan.upsamplers)],
  }


def _describe(plan: planning.Plan) -> dict[str, Any]:
  """The description of one stage of a cascade."""
  config = directory.config_json(plan.config)
  parts = ("model", "schedule", "target", "variance", "low_res")
  classifier = None
  if plan.classifier is not None:
    classifier = fingerprint(plan.classifier.params)
  options = plan.options
  # Only if it is not 0, so that the name of a single stage does not change.
  stage: dict[str, Any] = {"stage": plan.stage} if plan.stage else {}
  if options.sampler == "edm_heun":
    stage["churn"] = config["sampling"].get("churn")
  if options.guidance is not None and samplers.projects(plan.config):
    stage["apg"] = config["sampling"]["apg"]
  if options.cond:
    stage["cond"] = options.cond
  if plan.pictures:
    stage["pictures"] = {k: fingerprint(v) for k, v in plan.pictures.items()}
  if not config["sampling"].get("clip", True):
    stage["clip"] = False
  return stage | {
    "network": {name: config.get(name) for name in parts},
    "image_shape": plan.image_shape,
    "params": fingerprint(plan.params),
    "step": plan.step,
    "ema": plan.ema,
    "sampler": options.sampler,
    "pairs": sources.fingerprint(plan.pairs),
    "steps": len(plan.pairs),
    "spacing": options.spacing,
    "eta": options.eta,
    "classes": options.classes,
    "guidance": options.guidance,
    "classifier": classifier,
    "low_res": None if plan.low_res is None else fingerprint(plan.low_res),
    "low_res_noise": options.low_res_noise,
  }


def fingerprint(tree: Any) -> str:
  """A digest of a tree's arrays and of their paths in it."""
  parts: list[Any] = []
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    parts += [jax.tree_util.keystr(path), np.asarray(x)]
  return sources.fingerprint(*parts)
