"""The part of a report that shows samples on their way from noise."""

import io
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from diffusion_jax.data import pictures
from experiments.report.page import Section, missing
from experiments.report.pictures import (
  Captioned,
  Picture,
  data_url,
  picture,
  still,
)

FRAMES, SIDE = 26, 560  # at most
STILLS = 6  # shown beside the animation
MOST_BYTES, MOST_STILL = 1_000_000, 200_000  # the animation; its last frame
SECONDS, PAUSE = 0.1, 2.0  # each frame, and the last


def read(path: pathlib.Path) -> list[Image.Image]:
  """The frames of an animation; empty if the file is missing or damaged."""
  frames = []
  try:
    with Image.open(path) as film:
      for k in range(getattr(film, "n_frames", 1)):
        film.seek(k)
        frames.append(film.convert("RGB"))
  except pictures.BROKEN:
    return []
  return frames


def animation(frames: list[Image.Image], source: str) -> Section:
  """The section; with stills for print and for readers who turn motion off.

  Args:
    frames: The images, in order; may be empty.
    source: Where they come from, a sentence.

  Returns:
    The section.
  """
  title = "From noise to samples"
  if not frames:
    return missing(title, source)
  chosen = np.linspace(0, len(frames) - 1, min(len(frames), FRAMES))
  few = [frames[round(k)] for k in chosen]
  for frame in few:
    frame.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
  moving = _moving(few, "GIF")
  kind = "gif"
  if len(moving) > MOST_BYTES:
    kind, moving = "webp", _moving(few, "WEBP", quality=60)
  alt = "A grid of samples, from noise step by step to pictures"
  return Section(
    title,
    "film",
    {
      "source": source,
      "moving": Picture(data_url(kind, moving), alt, *few[-1].size),
      "last": still(few[-1], MOST_STILL),
      "stills": list(_stills(few)),
    },
  )


def _stills(frames: list[Image.Image]) -> Iterator[Captioned]:
  """A few frames, evenly spread, each with its progress."""
  last = len(frames) - 1
  for k in np.unique(np.rint(np.linspace(0, last, STILLS)).astype(int)):
    caption = "noise" if k == 0 else f"{k / last:.0%} of the way"
    words = f"The same grid, {caption}"
    shown = picture(np.asarray(frames[k]), words, side=SIDE // 2)
    yield Captioned(shown, caption)


def _moving(frames: list[Image.Image], kind: str, **options) -> bytes:
  file = io.BytesIO()
  first, *rest = frames
  first.save(
    file,
    kind,
    save_all=True,
    append_images=rest,
    duration=[int(1000 * SECONDS)] * len(rest) + [int(1000 * PAUSE)],
    loop=0,
    **options,
  )
  return file.getvalue()
