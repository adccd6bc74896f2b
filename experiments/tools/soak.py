"""Interrupts a training run in many ways, and checks that nothing is lost.

  python -m experiments.tools.soak --kills=20 --workdir=/tmp/soak

One run trains undisturbed. Another, with the same configuration, is killed at
random moments, has its newest checkpoint damaged, its disk filled and a
SIGTERM sent, and is started again each time with the same command. In the end
every array of the two must agree in every bit, and every logged loss.

A full disk needs a small file system of its own, and so root; without it that
fault is left out, and the last line says so.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from diffusion_jax.runs import directory, networks, restoring
from experiments import cli
from experiments.cli import devices

# A network whose steps take milliseconds: the test is about the rest.
SMALL = (
  "--config=configs/digits.py:smoke",
  "--config.model.channels=8",
  "--config.model.multipliers=(1,)",
  "--config.model.attention_levels=()",
  "--config.timesteps=importance",
  "--config.schedule.T=50",
  "--config.sampling.steps=10",
  "--config.preview.num=4",
  "--config.preview.steps=2",
  "--config.every.log=5",
  "--config.every.checkpoint=5",
  "--config.every.preview=50",
)
DISK = 48  # MB
LIMIT = 600  # seconds for one start of the run


def start(workdir: pathlib.Path, steps: int) -> subprocess.Popen:
  """Starts the run once, with the command that a user types."""
  return subprocess.Popen(
    [
      sys.executable, "-m", "experiments.train", *SMALL,
      f"--workdir={workdir}", f"--config.num_steps={steps}",
      f"--config.optim.decay_steps={steps}",
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip


def finish(life: subprocess.Popen) -> tuple[int, str]:
  """Its exit status and its output."""
  text, _ = life.communicate(timeout=LIMIT)
  return life.returncode, text


def wait_for_steps(life: subprocess.Popen) -> None:
  """Returns when the first step is logged, or the process has ended."""
  while line := life.stdout.readline() if life.stdout else "":
    if line.startswith("step "):
      return


class Faults:
  """The ways to disturb a run; each counts how often it did.

  Args:
    workdir: The run directory.
    steps: The steps of the run.
    chance: Decides the moments.
  """

  def __init__(self, workdir: pathlib.Path, steps: int, chance: random.Random):
    self._workdir, self._steps, self._chance = workdir, steps, chance
    self.survived = collections.Counter()

  def _start(self) -> subprocess.Popen:
    return start(self._workdir, self._steps)

  def kill(self) -> None:
    """SIGKILL, during the start or during training."""
    life = self._start()
    if self._chance.random() < 0.7:
      wait_for_steps(life)
      time.sleep(self._chance.uniform(0, 1.5))
    else:
      time.sleep(self._chance.uniform(0, 8))
    life.kill()
    status, _ = finish(life)
    if status == -signal.SIGKILL:
      self.survived["SIGKILL"] += 1

  def terminate(self) -> None:
    """SIGTERM, as for a preemption: it must save and print that."""
    life = self._start()
    wait_for_steps(life)
    life.send_signal(signal.SIGTERM)
    status, text = finish(life)
    if status == 0 and "stopped by SIGTERM" in text:
      self.survived["SIGTERM"] += 1

  def damage(self) -> None:
    """Changes a byte of the newest checkpoint; the one before must be used."""
    folder = self._workdir / "checkpoints"
    whole = [path for path in folder.iterdir() if path.name.isdigit()]
    newest = max(whole, key=lambda path: int(path.name))
    path = max(
      (p for p in newest.rglob("*") if p.is_file()),
      key=lambda p: p.stat().st_size,
    )
    content = bytearray(path.read_bytes())
    content[self._chance.randrange(len(content))] ^= 1
    path.write_bytes(content)
    life = self._start()
    wait_for_steps(life)
    life.send_signal(signal.SIGTERM)
    finish(life)
    if (folder / f"damaged-{newest.name}").is_dir():
      self.survived["damaged checkpoint"] += 1

  def fill(self) -> None:
    """Fills the disk: the run must say so in its last line, and no more."""
    filler = self._workdir.parent / "filler"
    life = self._start()
    wait_for_steps(life)
    try:
      with filler.open("wb", buffering=0) as file:
        while True:
          file.write(bytes(2**16))
    except OSError:
      status, text = finish(life)
    filler.unlink()
    last = text.strip().splitlines()[-1]
    once = "Traceback" not in text and text.count("No space left") == 1
    if status == 1 and once and "No space left" in last:
      self.survived["full disk"] += 1


def small_disk(folder: pathlib.Path) -> bool:
  """Mounts a small file system; returns whether that was possible."""
  folder.mkdir(parents=True)
  if os.geteuid() != 0 or not shutil.which("mount"):
    return False
  options = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(folder)]
  return subprocess.run(options, capture_output=True).returncode == 0


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint, by name."""
  config, data = directory.load(workdir)
  shape = tuple(data["image_shape"])
  net = networks.network(config, shape, data["num_classes"])
  state = restoring.restore(workdir, config, net, shape)
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """The logged losses, by step."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def differences(whole: pathlib.Path, torn: pathlib.Path) -> list[str]:
  """The differences of two runs, by name."""
  a, b = arrays(whole), arrays(torn)
  different = [
    name
    for name in sorted(a.keys() | b.keys())
    if name not in a or name not in b or not np.array_equal(a[name], b[name])
  ]
  if losses(whole).keys() - losses(torn).keys():
    different.append("metrics.jsonl")
  return different


def soak(
  workdir: pathlib.Path,
  *,
  kills: int,
  steps: int,
  seed: int,
  tell: Callable[..., object] = cli.say,
) -> list[str]:
  """Disturbs one run, leaves another alone, and compares them.

  Args:
    workdir: An empty directory for both.
    kills: How often to kill.
    steps: Steps of each run; enough to last for all kills.
    seed: Decides the moments.
    tell: Called with a line for each fault and its outcome.

  Returns:
    The failures; empty if there are none.
  """
  chance = random.Random(seed)
  whole, disk = workdir / "whole", workdir / "disk"
  status, text = finish(start(whole, steps))
  if status:
    return [f"the undisturbed run ended with status {status}: {text}"]
  has_disk = small_disk(disk)
  faults = Faults(disk / "torn", steps, chance)
  try:
    plan = [faults.kill] * kills
    others = [faults.terminate, faults.damage] + [faults.fill] * has_disk
    for place, fault in enumerate(others, start=1):
      plan.insert(place * len(plan) // (len(others) + 1), fault)
    for fault in plan:
      fault()
    status, text = finish(start(disk / "torn", steps))
    wrong = differences(whole, disk / "torn") if status == 0 else [text]
  finally:
    if has_disk:
      subprocess.run(["umount", str(disk)], check=False)
  wanted = {"SIGKILL": kills, "SIGTERM": 1, "damaged checkpoint": 1}
  wanted |= {"full disk": 1} if has_disk else {}
  for name, count in wanted.items():
    survived = faults.survived[name]
    tell(f"{name}: {survived} of {count} survived")
    if survived < count:
      wrong.append(f"{name} {survived} of {count}")
  if not has_disk:
    tell("full disk: left out, a small file system takes root")
  return wrong


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()
  for name, usual, least, text in (
    ("kills", 20, 0, "how often to kill the run"),
    ("steps", 600, 1, "steps of the run"),
    ("seed", 0, 0, "decides the moments"),
  ):
    flags.DEFINE_integer(
      name, usual, text, lower_bound=least, flag_values=values
    )
  flags.DEFINE_string(
    "workdir", None, "an empty directory for two runs", flag_values=values
  )
  cli.parse(argv, values)
  with cli.user_errors():
    if values.workdir is None:
      raise ValueError("--workdir is missing: an empty directory")
    workdir = pathlib.Path(values.workdir)
    directory.check_place(workdir / "whole")
    cli.check_out(workdir, flag="workdir")
    if workdir.exists() and any(workdir.iterdir()):
      raise ValueError(f"{workdir} is not empty; choose another --workdir")
  wrong = soak(
    workdir, kills=values.kills, steps=values.steps, seed=values.seed
  )
  if wrong:
    raise cli.fail(f"not the same: {', '.join(wrong)}", status=1)
  cli.say("every array and every logged step agree, bit for bit")


if __name__ == "__main__":
  cli.run(main)
