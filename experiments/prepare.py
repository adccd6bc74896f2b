r"""Writes a cache of a configuration's data, so that training decodes nothing.

  python -m experiments.prepare --config=configs/NAME.py \
      --config.data.name=PATH --config.data.size=64 --out=CACHE
  python -m experiments.train --config=configs/NAME.py \
      --config.data.name=CACHE

Images are decoded, resized and cropped once, by --processes processes at a
time. Run the same command again to continue it, or to check a complete cache.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import tqdm
from absl import flags

import diffusion_jax as dj
from diffusion_jax.runs import datasets, directory
from diffusion_jax.runs.configuration import Config
from experiments import cli


def options(config: Config) -> dict[str, Any]:
  """The keys of the configuration that determine the data.

  Raises:
    ValueError: If the data have random crops.
  """
  # Without data.cond: numbers are small, training reads them as they are.
  asked = datasets.load_options(config)
  if asked["random_crop"]:
    raise ValueError(
      "data.random_crop cuts pictures anew each time, which a cache cannot: "
      "leave it out"
    )
  return asked


def opened(asked: dict[str, Any]) -> dj.data.Source:
  """The data, decoded only when needed."""
  return dj.data.load(**asked, max_bytes=0)


def _write(asked: dict[str, Any], out: pathlib.Path, index: int, count: int):
  """The share of one process of several."""
  dj.data.cache.write(opened(asked), out, index=index, count=count)


@contextlib.contextmanager
def alone(out: pathlib.Path) -> Iterator[None]:
  """Keeps other commands from writing the same cache.

  Raises:
    ValueError: If another one writes it, or the folder holds something else.
  """
  dj.data.cache.check_place(out)
  out.mkdir(parents=True, exist_ok=True)
  otherwise = f"another process prepares {out}: wait for it, or name another"
  with directory.lock(out, otherwise):
    yield


def prepare(asked: dict[str, Any], out: pathlib.Path, processes: int) -> None:
  """Writes what is missing.

  Args:
    asked: Arguments of ``dj.data.load``.
    out: The cache.
    processes: How many decode at a time, each with all cores' threads.
  """
  source = opened(asked)
  cli.say(f"data: {dj.data.summary(source)}")
  # The path of data does not identify them.
  what = {
    k: v for k, v in asked.items() if k not in ("name", "data_dir", "rank")
  }
  with alone(out):
    dj.data.cache.begin(source, out, asked=what)
    if processes == 1:
      with tqdm.tqdm(
        total=len(source), unit="image", disable=not sys.stderr.isatty()
      ) as bar:
        dj.data.cache.write(source, out, progress=bar.update)
    else:
      _share(asked, out, processes)
    dj.data.cache.finish(out)
    dj.data.cache.load(out, verify=True)


def _share(asked: dict[str, Any], out: pathlib.Path, processes: int) -> None:
  """Writes what is missing, with several processes."""
  # Not forked: threads are running here.
  context = multiprocessing.get_context("spawn")
  share = functools.partial(_write, asked, out)
  with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
    # Ctrl-C reaches all processes at a terminal; this one ends the others.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    shares = pool.map(share, range(processes), [processes] * processes)
    signal.signal(signal.SIGINT, before)
    try:
      list(shares)
    except KeyboardInterrupt:
      for process in multiprocessing.active_children():
        process.terminate()
      raise


def main(argv: list[str]) -> None:
  """The command."""
  values = flags.FlagValues()
  cli.define_config(values, argv, "configs/folder.py")
  flags.DEFINE_string("out", None, "the cache to write", flag_values=values)
  flags.DEFINE_integer(
    "processes", 1, "how many processes decode", flag_values=values,
    lower_bound=1,
  )  # fmt: skip
  cli.parse(argv, values)
  with cli.user_errors():
    if values.out is None:
      raise ValueError("--out is missing: the folder of the cache")
    out = pathlib.Path(os.path.expanduser(values.out))
    cli.check_out(out / dj.data.cache.NAME)
    prepare(options(values.config), out, values.processes)
  cli.say(f"written to {out}: train with --config.data.name={out}")


if __name__ == "__main__":
  cli.run(main)
