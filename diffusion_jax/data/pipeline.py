"""Batches as a function of (seed, step) alone."""

import functools
import sys
import threading
from collections.abc import Iterator

import grain
import numpy as np

from diffusion_jax.data.sources import Source


def batches(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  flip: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.MapDataset:
  """Shuffled batches without end, by step.

  The examples form one endless sequence, epoch after epoch, each epoch a new
  permutation of the source; batch ``step`` is the piece of the sequence from
  step * batch_size on. So every epoch visits every example once, no example is
  dropped if an epoch does not end with a batch, and a source may be smaller
  than a batch. A run that is resumed at a step continues exactly, and every
  step costs the same.

  Args:
    source: Where the examples come from.
    batch_size: Examples per step, over all processes.
    seed: Seed of the permutations, the flips and the crops; at least 0.
    flip: Whether to mirror each example left to right, along the last axis of
      its size, with probability 1/2, drawn anew each epoch.
    process_index: Which part of each batch this process reads, 0 to
      process_count - 1. The parts of all, one after another, are the batch of
      a single process.
    process_count: Number of processes.

  Returns:
    A data set whose element ``step`` is {"image": float32 [b, H, W, C],
    "label": int32 [b]} with b = batch_size / process_count, plus the source's
    ``vectors``, float32 [b, n], and ``pictures``, float32 [b, H, W, c], by
    name. Its ``values`` define how numbers become floats: a byte k becomes
    k / 127.5 - 1.

  Raises:
    ValueError: If a number is out of range, if process_count does not divide
      batch_size, or if the source is empty.
  """
  if len(source) < 1:
    raise ValueError(f"source {source.name!r} is empty: give another")
  if process_count < 1:
    raise ValueError(f"process_count is {process_count}: must be at least 1")
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size is {batch_size}: must be a positive multiple of the"
      f" {process_count} processes"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index is {process_index}: must be 0 to {process_count - 1}"
    )
  if flip and len(source.image_shape) == 2:
    raise ValueError(
      f"flip mirrors pictures left to right, and {source.name} are signals: "
      "pass flip=False"
    )
  if seed < 0:
    raise ValueError(f"seed is {seed}: must be at least 0")
  part = batch_size // process_count
  epoch = _Epochs(len(source), seed, source.random_words)

  def batch(step: int) -> dict[str, np.ndarray]:
    start = step * batch_size + process_index * part
    indices, mirrored, words = epoch.take(start, part)
    examples = source.visit(indices, words)

    def floats(of: Source, images: np.ndarray) -> np.ndarray:
      if flip:
        images[mirrored] = images[mirrored][..., ::-1, :]
      return of.values.floats(images)

    numbers = {name: v[indices] for name, v in source.vectors.items()}
    pictures = {  # cropped and mirrored like the example
      name: floats(other, other.visit(indices, words)["image"])
      for name, other in source.pictures.items()
    }
    image = floats(source, examples["image"])
    return {"image": image, "label": examples["label"], **numbers, **pictures}

  return grain.MapDataset.range(sys.maxsize).map(batch)


def iterate(
  batches: grain.MapDataset, start: int = 0, *, threads: int = 4, ahead: int = 8
) -> Iterator[dict[str, np.ndarray]]:
  """Batches from step ``start`` on, in order, prefetched by threads.

  Args:
    batches: From ``batches``.
    start: First step; the cost of starting does not depend on it.
    threads: Number of batches to prepare at a time.
    ahead: Number of batches to hold in memory, at least ``threads``.

  Returns:
    An endless iterator. An error in a thread is raised by the ``next`` that
    would have returned the batch.

  Raises:
    ValueError: If start is negative.
  """
  if start < 0:
    raise ValueError(f"start is {start}: must be a step, at least 0")
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(ahead, threads)
  )
  return iter(batches[start:].to_iter_dataset(options))


class _Epochs:
  """The endless sequence of examples: a permutation and coin flips per epoch.

  And ``words`` random numbers for each example, if its source takes any.
  """

  def __init__(self, length: int, seed: int, words: int):
    self._length = length
    self._seed = seed
    self._words = words
    # Two, because batches read ahead can lie on both sides of a boundary. The
    # lock keeps threads from drawing the same large epoch at once.
    self._epoch = functools.lru_cache(maxsize=2)(self._draw)
    self._lock = threading.Lock()

  def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order [N], whether to mirror [N] and words [N, words] of an epoch."""
    # NumPy promises that the raw bits of Philox do not change in later
    # versions, but not so for Generator.permutation; and an old run must be
    # resumable with a new NumPy.
    bits = np.random.Philox(np.random.SeedSequence([self._seed, epoch]))
    order = np.argsort(bits.random_raw(self._length), kind="stable")
    mirrored = (bits.random_raw(self._length) & 1).astype(bool)
    words = bits.random_raw(self._length * self._words)
    return order, mirrored, words.reshape(self._length, self._words)

  def take(
    self, start: int, count: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, coin flips and words of ``count`` from ``start`` on."""
    pieces = []
    while count > 0:
      epoch, first = divmod(start, self._length)
      with self._lock:
        drawn = self._epoch(epoch)
      pieces.append([part[first : first + count] for part in drawn])
      taken = len(pieces[-1][0])
      start, count = start + taken, count - taken
    indices, mirrored, words = map(np.concatenate, zip(*pieces, strict=True))
    return indices, mirrored, words
