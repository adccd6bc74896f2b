"""Writes a page about a run: curves, samples, nearest images, metrics.

  python -m experiments.report --workdir=runs/digits
  python -m experiments.report --workdir=runs/digits --out=digits.html

The page is one self-contained file, which can be written at any time of a run;
a sentence stands in for what does not exist yet. The loss against t, the
nearest images of the data and, before training ends, the animation come from
the newest checkpoint, or that of --checkpoint, with the sampler of previews;
--nonetwork leaves them out. The flags of experiments.sample set how samples are
drawn.
"""

import pathlib
from collections.abc import Callable

from absl import flags
from PIL import Image

import diffusion_jax as dj
from diffusion_jax.runs import datasets, planning
from diffusion_jax.runs.configuration import Config, is_classifier
from diffusion_jax.runs.options import SamplingOptions
from experiments import cli
from experiments.cli import devices, options
from experiments.report import animation, curves, findings, sections, tables
from experiments.report.page import Section, missing, render
from experiments.report.record import Record, read


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
  """The flags of experiments.sample, and the file of the page."""
  options.define(values, SamplingOptions)
  flags.DEFINE_string(
    "out",
    None,
    "NAME.html; by default report.html in the run directory",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "network",
    True,
    "add what needs the network; --nonetwork is quick and only shows files",
    flag_values=values,
  )
  return values


def plan_or_why_not(
  values: flags.FlagValues, record: Record
) -> planning.Plan | str:
  """The plan of the samples, or a sentence why there is none.

  Raises:
    ValueError: If the flags do not fit the run.
  """
  config = record.config
  if not values.network:
    return "Left out by --nonetwork."
  if record.checkpoint is None:
    return (
      "There is no checkpoint yet: one comes every "
      f"{config.every.checkpoint:,} steps."
    )
  named = (values.sampler, values.steps, values.spacing, values.eta)
  if all(value is None for value in named):
    # As previews do it: in few steps.
    values.sampler = config.preview.sampler
    values.steps = config.preview.steps
    values.spacing = config.preview.get("spacing")
  asked = options.read(values, SamplingOptions)
  return planning.plan(record.workdir, asked)


def source_or_why_not(config: Config) -> dj.data.Source | str:
  """The data of a run, or a sentence why they cannot be read."""
  try:
    return datasets.source(
      config, elsewhere="experiments.train --config.data.name"
    )
  except (ValueError, OSError) as error:
    return f"The data cannot be read here: {error}."


def found_out(
  plan: planning.Plan | str, source: dj.data.Source | str
) -> list[Section]:
  """The sections that need network and data; the samples are the last stage's.

  Args:
    plan: The plan of the samples, or why there is none.
    source: The data of its first stage, or why they cannot be read.

  Returns:
    The sections, or sentences in their place.
  """
  beside = source
  if not isinstance(plan, str) and plan.upsamplers:
    beside = source_or_why_not(plan.last.config)
  return [
    _found_out(findings.CURVE, findings.loss_against_t, plan, source),
    _found_out(findings.MEMORY, findings.memory, plan, beside),
  ]


def _found_out(
  title: str,
  find: Callable[[planning.Plan, dj.data.Source], Section],
  plan: planning.Plan | str,
  source: dj.data.Source | str,
) -> Section:
  if isinstance(plan, str):
    return missing(title, plan)
  if isinstance(source, str):
    return missing(title, source)
  if len(source) < 2:
    return missing(
      title, "The data are one picture, beside which nothing is near or far."
    )
  return find(plan, source)


def film(plan: planning.Plan | str, record: Record) -> Section:
  """The section of the animation: the run's own, or a new one."""
  path = record.workdir / "samples" / "denoising.gif"
  if frames := animation.read(path):
    return animation.animation(frames, "As training left it at its end.")
  if isinstance(plan, str):
    return animation.animation([], plan)
  frames = [Image.fromarray(frame) for frame in findings.film(plan)]
  return animation.animation(frames, f"Drawn from step {plan.step:,}.")


def drawings(
  plan: planning.Plan | str | None,
  record: Record,
  source: dj.data.Source | str,
) -> list[Section]:
  """All sections with images; only a few for a classifier, without a plan."""
  if plan is None:
    return [curves.training(record)]
  return [
    sections.samples(record),
    film(plan, record),
    curves.training(record),
    curves.colours(record),
    *found_out(plan, source),
  ]


def changed(record: Record, source: dj.data.Source | str) -> str | None:
  """A warning if the data are not those of the run."""
  if isinstance(source, str):
    return None
  if record.data["fingerprint"] in (None, source.fingerprint):
    return None
  return (
    "The data have changed since this run was trained on them: what is "
    "compared with data below is compared with other data."
  )


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = define_flags(flags.FlagValues())
  cli.parse(argv, values)
  with cli.user_errors():
    record = read(options.workdir(values))
    out = pathlib.Path(values.out or record.workdir / "report.html")
    cli.check_out(out, ".html")
    plan = None
    if not is_classifier(record.config):
      plan = plan_or_why_not(values, record)
  with cli.user_errors():
    source = "" if plan is None else source_or_why_not(record.config)
    text = render(
      record.workdir.resolve().name,
      sections.headline(record),
      [
        *drawings(plan, record, source),
        tables.evaluations(record),
        tables.settings(record),
      ],
      version=record.versions.get("diffusion_jax", ""),
      warning=changed(record, source),
    )
  with cli.system_errors():
    out.parent.mkdir(parents=True, exist_ok=True)
    # File names may not be valid Unicode.
    out.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
  cli.say(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
  cli.run(main)
