"""A training command, from its command line to its last word."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from diffusion_jax import runs
from diffusion_jax.runs import console, directory
from diffusion_jax.runs.configuration import Config
from diffusion_jax.runs.training import dry_run, loop
from diffusion_jax.runs.training.interruption import STATUS
from experiments.cli import arguments, devices, shell


def main(
  argv: list[str],
  default: str,
  then: Callable[[Config, pathlib.Path], str],
) -> None:
  """A training command, from its command line to its last word.

  Args:
    argv: The command line.
    default: The configuration file if none is named.
    then: ``(config, workdir) -> command`` that shows the result of a run.

  Raises:
    SystemExit: Status 2 after one line if the run should not have started, 1 if
      it cannot continue; 0 or 130 if a signal stopped it.
  """
  devices.start()
  asked = command_line(argv, default)
  config, workdir = asked.config, asked.workdir
  with contextlib.ExitStack() as held:
    with shell.user_errors():
      run = runs.prepare(config, workdir)
      if asked.dry_run:
        return dry_run.report(run)
      changes = held.enter_context(loop.opened(run, new_data=asked.new_data))
    with shell.system_errors():
      try:
        stopped = loop.train(run, changes)
      except loop.Failed as error:
        raise shell.fail(error, status=error.status) from error
  if stopped is not None:
    raise SystemExit(STATUS[stopped])
  console.say_first(f"next: {then(config, workdir)}")


class Command(NamedTuple):
  """The arguments of a training command.

  Attributes:
    config: The configuration; that of the directory, if only a directory is
      named.
    workdir: The directory.
    dry_run: Whether to stop after printing what the run needs.
    new_data: Whether to resume with other data than before.
  """

  config: Config
  workdir: pathlib.Path
  dry_run: bool
  new_data: bool


def command_line(argv: list[str], default: str) -> Command:
  """Reads a command line.

  Args:
    argv: The command line.
    default: The configuration file if none is named.
  """
  values = flags.FlagValues()
  known = arguments.peek(argv, "config", "workdir")
  folder = pathlib.Path(known["workdir"] or "")
  alone = known["workdir"] and not known["config"]
  goes_on = alone and directory.is_run(folder)
  if alone and not goes_on and not arguments.asks_help(argv):
    raise shell.fail(
      f"no run in {folder} to go on with; to start one there, name its "
      f"--config, such as --config={default}"
    )
  if goes_on:
    with shell.user_errors():
      arguments.define_known_config(values, argv, directory.changeable(folder))
  else:
    arguments.define_config(values, argv, default)
  flags.DEFINE_string(
    "workdir",
    None,
    "run directory; by default runs/NAME, with the configuration's name",
    flag_values=values,
  )
  for name, text in {
    "dry_run": "print parameters, FLOPs and memory of a step, and stop",
    "new_data": "resume with other data than before, from the last checkpoint",
  }.items():
    flags.DEFINE_bool(name, False, text, flag_values=values)
  arguments.parse(argv, values)
  name = arguments.config_name(argv, default)
  workdir = pathlib.Path(values.workdir or f"runs/{name}")
  return Command(values.config, workdir, values.dry_run, values.new_data)
