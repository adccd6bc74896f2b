r"""Compares how fast training reads a cache with how fast its step is.

  python -m experiments.tools.reading --num=200000 --size=256 --out=CACHE \
      --batch=256 --step_rate=1500

It writes a cache of random images to --out, or reads the cache that is there.
--step_rate is the speed of a training step: "images/s" in the log of
experiments.train. Reading keeps up if it is faster; its CPU seconds, the same
on a busy machine, say how many cores that takes. A cache that was just written
may still be in memory: with --cold, the system first forgets it, and the line
says how much then came from the disk.
"""

import os
import pathlib
import resource
import shutil
import sys
import time
from typing import NamedTuple

import numpy as np
import tqdm
from absl import flags

import diffusion_jax as dj
from diffusion_jax.data import sources
from experiments import cli, prepare

AHEAD = 2  # batches that a thread is ahead


def made(num: int, size: int) -> dj.data.Source:
  """Images of noise, [size, size, 3], each a function of its number."""

  def read(index: int) -> tuple[np.ndarray, int]:
    bits = np.random.Philox(index).random_raw(size * size * 3 // 8 + 1)
    pixels = bits.view(np.uint8)[: size * size * 3]
    return pixels.reshape(size, size, 3), 0

  return dj.data.LazySource(
    name=f"made {num}",
    image_shape=(size, size, 3),
    fingerprint=sources.fingerprint("made", num, size),
    read=read,
    length=num,
    max_bytes=0,
  )


def write(out: pathlib.Path, num: int, size: int) -> None:
  """Writes the cache, or its missing parts.

  Raises:
    ValueError: If the disk has no room for it.
  """
  source = made(num, size)
  needed = sources.num_bytes((num, size, size, 3), source.values)
  out.parent.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(out.parent).free
  if not dj.data.cache.is_cache(out) and needed > free:
    raise ValueError(
      f"--num={num} pictures need {needed / 1e9:.1f} GB, {out.parent} has"
      f" {free / 1e9:.1f} GB: ask for fewer, or name another disk by --out"
    )
  with prepare.alone(out):
    dj.data.cache.begin(source, out)
    with tqdm.tqdm(total=num, disable=not sys.stderr.isatty()) as bar:
      dj.data.cache.write(source, out, progress=bar.update)
    dj.data.cache.finish(out)


def forget(path: pathlib.Path) -> None:
  """Has the system drop what it keeps of a file in memory."""
  with path.open("rb") as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Cost(NamedTuple):
  """Of reading one picture: seconds, CPU seconds, bytes from the disk."""

  seconds: float
  cpu: float
  disk: float


def cost(
  source: dj.data.Source, batch: int, batches: int, threads: int
) -> Cost:
  """The cost of reading as in training: shuffled, mirrored, as floats.

  Args:
    source: The data.
    batch: Images in a batch.
    batches: How many to measure, after those that are read ahead.
    threads: How many threads read.
  """
  each = dj.data.batches(source, batch_size=batch, seed=0, flip=True)
  ahead = AHEAD * threads
  rows = dj.data.iterate(each, threads=threads, ahead=ahead)

  def now() -> np.ndarray:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    return np.array([time.perf_counter(), cpu, 512 * used.ru_inblock])

  for _ in range(ahead + 1):  # the permutation, and what was made meanwhile
    next(rows)
  start = now()
  for _ in range(batches):
    next(rows)
  return Cost(*(now() - start) / (batch * batches))


def main(argv: list[str]) -> None:
  """The command."""
  values = flags.FlagValues()
  flags.DEFINE_string("out", None, "the cache", flag_values=values)
  flags.DEFINE_float(
    "step_rate", None, "images per second of a training step",
    flag_values=values, lower_bound=0.0,
  )  # fmt: skip
  flags.DEFINE_bool("cold", False, "read from the disk", flag_values=values)
  for name, default, text in (
    ("num", 2_000, "pictures to make"),
    ("size", 256, "their side"),
    ("batch", 256, "pictures in a batch"),
    ("batches", 50, "batches to time"),
    ("threads", 4, "that read"),
  ):
    flags.DEFINE_integer(name, default, text, flag_values=values, lower_bound=1)
  cli.parse(argv, values)
  with cli.user_errors():
    if values.out is None:
      raise ValueError("--out is missing: the folder of the cache")
    out = pathlib.Path(values.out).expanduser()
    # Threads that began together end together: a few batches come at once.
    if values.batches < (least := AHEAD * values.threads):
      raise ValueError(
        f"--batches={values.batches} must be at least {least}: so many are "
        "read ahead"
      )
    cli.check_out(out / "images.npy")
    if not dj.data.cache.is_cache(out):
      write(out, values.num, values.size)
    if values.cold:  # of what is mapped, nothing is dropped
      forget(out / "images.npy")
    source = dj.data.cache.load(out, verify=False)
    cli.say(f"reading {dj.data.summary(source)}")
  one = cost(source, values.batch, values.batches, values.threads)
  size = sources.num_bytes(source.image_shape, source.values)
  cli.say(
    f"{1 / one.seconds:,.0f} images/s of {size:,.0f} bytes, {one.disk:,.0f} of"
    f" them from the disk; {1000 * one.cpu:.3g} CPU s per 1,000 images"
  )
  if values.step_rate:
    times = 1 / (one.seconds * values.step_rate)
    words = "keeps up" if times >= 1 else "is what training waits for"
    cli.say(
      f"reading is {times:.2f} times as fast as the step's"
      f" {values.step_rate:,.0f} images/s and {words}; these take"
      f" {one.cpu * values.step_rate:.2g} cores"
    )


if __name__ == "__main__":
  cli.run(main)
