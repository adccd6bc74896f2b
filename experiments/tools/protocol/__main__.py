"""Trains for a given time, and compares with diffusers' recipe in that time.

  pip install -e '.[peers]'
  python -m experiments.tools.protocol --minutes=5 \
    --config.data.name=PICTURES.zip

Trains a configuration until its last step, or until the minutes are over;
trains diffusers' own recipe, a network of the same size, for as long; samples
from both, compares both with the data in the same features, and writes a table,
a plot of quality against minutes and grids of unselected samples to --workdir.
Time counts from the start of the command to the last saved checkpoint,
including starting Python, reading data and compiling.

Each stage (train, peer, evaluate, page) saves its result and is not repeated:
the same command continues after an interruption, but a training that was cut
short has to begin anew. docs/cifar.md has the result.
"""

import concurrent.futures
import functools
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
from absl import flags

import diffusion_jax as dj
from diffusion_jax.pretrained import diffusers_config
from diffusion_jax.runs import choices, datasets, directory
from experiments import cli
from experiments.tools.protocol import page

STAGES = ("train", "peer", "evaluate", "page")
NEEDS = {"peer": ("train",), "evaluate": ("train", "peer")}
METRICS = "fid,kid,pr"
PARTS = 4  # of the time; diffusers' average is saved at the end of each
DEFAULT_CONFIG = "configs/cifar.py:fast"


def define_flags(argv: list[str]) -> flags.FlagValues:
  """What to train, for how long, and how to measure it."""
  values = flags.FlagValues()
  cli.define_config(values, argv, DEFAULT_CONFIG)

  def define(kind, name, default, text, **options):
    kind(name, default, text, flag_values=values, **options)

  text, whole = flags.DEFINE_string, flags.DEFINE_integer
  define(text, "workdir", "runs/cifar-fast", "where everything is written")
  define(
    flags.DEFINE_float, "minutes", 10.0, "training time of each",
    lower_bound=0.1,
  )  # fmt: skip
  define(
    flags.DEFINE_list, "stages", list(STAGES),
    f"one or more of {', '.join(STAGES)}",
  )  # fmt: skip
  define(
    text, "features", "experiments.tools.efficientnet:lite0",
    "feature network of the distances, as for experiments.evaluate",
  )  # fmt: skip
  define(whole, "num", 50_000, "samples of the final models", lower_bound=20)
  define(
    whole, "curve", 10_000, "samples of each checkpoint; 0: none",
    lower_bound=0,
  )  # fmt: skip
  define(
    flags.DEFINE_float, "guidance", 1.5,
    "scale of a second, guided set of samples",
  )  # fmt: skip
  define(whole, "steps", 20, "network calls for a sample", lower_bound=1)
  define(whole, "peer_steps", 50, "the same, for diffusers", lower_bound=1)
  define(whole, "batch", 1000, "samples at a time", lower_bound=1)
  define(
    whole, "together", 3, "sets of samples to draw at a time", lower_bound=1
  )
  define(
    whole, "peer_batch", 128, "images per step of diffusers", lower_bound=1
  )
  define(flags.DEFINE_bool, "compile", True, "diffusers with torch.compile")
  return values


class Protocol:
  """The stages; each result is a file of the directory.

  Args:
    values: The flags.
    config: The flags of the configuration, as given.
  """

  def __init__(self, values: flags.FlagValues, config: list[str]):
    self.values = values
    self.config = config
    self.data = values.config.data.name
    self.seed = values.config.seed
    self.folder = pathlib.Path(values.workdir)
    self.ours = self.folder / "ours"
    directory.check_place(self.ours)
    self.folder.mkdir(parents=True, exist_ok=True)

  def check(self, stages: list[str]) -> None:
    """Checks that each stage will have what those before it leave.

    Raises:
      ValueError: If not, or there is no such stage.
    """
    for place, stage in enumerate(stages):
      choices.named("--stages", stage, STAGES)
      for need in NEEDS.get(stage, ()):
        if need not in stages[:place] and self.result(need) is None:
          raise ValueError(
            f"--stages={stage} needs what --stages={need} leaves"
          )

  def result(self, name: str) -> dict[str, Any] | None:
    """The result of a stage."""
    return page.result(self.folder, name)

  def keep(self, name: str, result: dict[str, Any]) -> None:
    """Saves a result atomically."""
    text = json.dumps(result, indent=2) + "\n"
    directory.replace(self.folder / f"{name}.json", text)
    cli.say(f"{name}: {json.dumps(result)}")

  def train(self) -> None:
    """Trains ours, until its last step or the end of the time.

    Raises:
      ValueError: If it was begun before, or saves nothing in its time.
    """
    if self.ours.exists():
      raise ValueError(
        f"{self.ours} is of a training that was interrupted, so that its time "
        "is not known: delete it to train anew, or choose another --workdir"
      )
    begin = time.time()
    process = subprocess.Popen(
      [
        sys.executable, "-m", "experiments.train", f"--workdir={self.ours}",
        *self.config,
      ]
    )  # fmt: skip
    try:
      process.wait(timeout=60 * self.values.minutes)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)
      process.wait()
    if process.returncode:
      raise SystemExit(process.returncode)
    saved = _saved(self.ours)
    if not saved:
      raise ValueError(
        f"no checkpoint was saved within --minutes={self.values.minutes:g}: "
        f"delete {self.ours} and take more"
      )
    config, data = directory.load(self.ours)
    versions = directory.read_json(self.ours, "versions")
    self.keep(
      "train",
      {
        "seconds": saved[-1][1] - begin,
        "checkpoints": [(step, at - begin) for step, at in saved],
        "steps": saved[-1][0],
        "planned_steps": config.num_steps,
        "batch": config.batch_size,
        "data": data["name"],
        "seed": self.seed,
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
      },
    )

  def peer(self) -> None:
    """Trains diffusers', for as long as ours took."""
    ours = self.result("train")
    assert ours is not None  # see check
    begin = time.time()
    config, data = directory.load(self.ours)
    images = self.folder / "images.npy"
    if not images.is_file():
      source = datasets.source(config)
      np.save(images, source.gather(np.arange(len(source)))["image"])
      begin = time.time()  # Reading data is counted for ours alone.
    shape = tuple(data["image_shape"])
    net = dj.UNet(
      channels=config.model.channels,
      multipliers=config.model.multipliers,
      num_blocks=config.model.num_blocks,
      attention_levels=(1,),
      groups=min(32, config.model.channels),
    )
    done = self._peer(
      do="train",
      begin=begin,
      images=str(images),
      seconds=ours["seconds"],
      unet=diffusers_config.config(net, shape),
      batch_size=self.values.peer_batch,
      parts=PARTS,
    )
    self.keep("peer", done | {"seconds": done["saved_seconds"][-1]})

  def _peer(self, **job: Any) -> dict[str, Any]:
    """Runs a job in a worker."""
    job |= {
      "out": str(self.folder / "diffusers"),
      "seed": self.seed,
      "dtype": directory.load(self.ours)[0].model.dtype,
      "compile": self.values.compile,
    }
    return json.loads(
      _run(
        "experiments.tools.protocol.peer", stdin=json.dumps(job)
      ).splitlines()[-1]
    )

  def evaluate(self) -> None:
    """The metrics of both; the data's features are computed once for each."""
    values = self.values
    ours = {"evaluate ours": 1.0}
    if self._conditional():
      ours["evaluate ours, guided"] = values.guidance
    theirs = {"evaluate diffusers": (PARTS, values.num)}
    if values.curve:
      for part in range(1, PARTS + 1):
        theirs[f"curve diffusers {part}"] = (part, values.curve)
    with concurrent.futures.ThreadPoolExecutor(values.together) as pool:

      @functools.cache  # with as many samples two stages share a file
      def drawn(part: int, num: int):
        return pool.submit(self._diffusers, part, num)

      our_files = {
        stage: pool.submit(self._ours, stage, scale)
        for stage, scale in ours.items()
        if self.result(stage) is None
      }
      their_files = {
        stage: drawn(part, num)
        for stage, (part, num) in theirs.items()
        if self.result(stage) is None
      }
      agreement = ",agreement" if self._conditional() else ""
      self._measure(our_files, METRICS + agreement)
      self._measure(their_files, METRICS)
    if values.curve and self.result("curve ours") is None:
      self._evaluate(
        f"--workdir={self.ours}", "--curve", f"--num={values.curve}",
        f"--steps={values.steps}", "--metrics=fid",
        *(["--guidance=1"] if self._conditional() else []),
      )  # fmt: skip
      self.keep("curve ours", {"samples": values.curve})

  def _conditional(self) -> bool:
    return directory.load(self.ours)[0].model.num_classes is not None

  def _ours(self, stage: str, guidance: float) -> str:
    """The file of our samples."""
    name = stage.removeprefix("evaluate ").replace(", ", "-")
    out = self.folder / "samples" / f"{name}.npz"
    if not out.is_file():
      _run(
        "experiments.sample", f"--workdir={self.ours}", f"--out={out}",
        f"--num={self.values.num}", f"--steps={self.values.steps}",
        f"--batch={self.values.batch}", f"--seed={self.seed}",
        *([f"--guidance={guidance}"] if self._conditional() else []),
      )  # fmt: skip
    return str(out)

  def _diffusers(self, part: int, num: int) -> str:
    """The file of diffusers' samples, from the average of a part."""
    drawn = self._peer(
      do="sample", part=part, num=num, steps=self.values.peer_steps,
      batch_size=self.values.batch,
    )  # fmt: skip
    return drawn["samples"]

  def _measure(
    self, files: dict[str, concurrent.futures.Future[str]], metrics: str
  ) -> None:
    """Measures files of samples, and saves the row of each for its stage."""
    if not files:
      return
    paths = {stage: file.result() for stage, file in files.items()}
    said = self._evaluate(
      f"--samples={','.join(dict.fromkeys(paths.values()))}",
      f"--reference={self.data}", f"--metrics={metrics}",
    )  # fmt: skip
    lines = [line for line in said.splitlines() if line.startswith("{")]
    rows = {row["pictures"]: row for row in map(json.loads, lines)}
    for stage, path in paths.items():
      self.keep(stage, rows[path])

  def _evaluate(self, *arguments: str) -> str:
    return _run(
      "experiments.evaluate", *arguments,
      f"--features={self.values.features}", f"--batch={self.values.batch}",
      f"--seed={self.seed}",
    )  # fmt: skip

  def page(self) -> None:
    """Table, plot and grids."""
    page.write(self.folder)


def _run(module: str, *arguments: str, stdin: str = "") -> str:
  """Runs a command of this project; returns its standard output."""
  done = subprocess.run(
    [sys.executable, "-m", module, *arguments],
    input=stdin, stdout=subprocess.PIPE, text=True, check=False,
  )  # fmt: skip
  if done.returncode:
    raise SystemExit(done.returncode)
  return done.stdout


def _saved(workdir: pathlib.Path) -> list[tuple[int, float]]:
  """The kept checkpoints of a run, and when each was complete."""
  return sorted(
    (int(path.name), max(p.stat().st_mtime for p in path.rglob("*")))
    for path in (workdir / "checkpoints").glob("*")
    if path.name.isdecimal()
  )


def main(argv: list[str]) -> None:
  """The command."""
  values = define_flags(argv)
  cli.parse(argv, values)
  config = [word for word in argv if word.startswith("--config")]
  if not any(word.startswith("--config=") for word in config):
    config.insert(0, f"--config={DEFAULT_CONFIG}")
  with cli.user_errors():
    protocol = Protocol(values, config)
    protocol.check(values.stages)
    for stage in values.stages:
      if stage in ("evaluate", "page") or protocol.result(stage) is None:
        getattr(protocol, stage)()


if __name__ == "__main__":
  cli.run(main)
