"""Draws the figures of the README, of docs/ and of CONTRIBUTING.md.

  python -m experiments.tools.figures
  python -m experiments.tools.figures --only=schedules --out=.
  python -m experiments.tools.figures --workdir=runs/digits
  python -m experiments.tools.figures --workdir=runs/digits-classes

Without --workdir, those that need no trained run: schedules, forward, roll,
paths, maps and embedding, in docs/figures. With --workdir those that a run
draws: samples, denoising and, if it can edit, editing; or guided if it has
classes. The same command gives the same figure. Others of docs/ come from

  digits.png   --workdir=runs/digits, figure "samples"
  editing.png  --workdir=runs/digits, figure "editing"
  guided.png   --workdir=runs/digits-classes, figure "guided"
  solvers.png  python -m experiments.tools.solvers --out=docs/solvers.png
  fields.png   the code of docs/any-rank.md

after experiments.train with configs/digits.py and configs/digits.py:classes;
signals.png and volumes.png by experiments.sample, of the runs of that page; of
signals, the first 24.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

import diffusion_jax as dj
from diffusion_jax import plots, shapes
from diffusion_jax.runs import choices, directory, drawing, networks, planning
from diffusion_jax.runs.options import SamplingOptions
from experiments import cli, edit
from experiments.cli import devices
from experiments.tools import flow_maps

T = 1000
SHOWN = 10  # steps in a strip
LINEAR, COSINE = "linear", "cosine"


def schedules():
  """Signal left and log-SNR of the linear and the cosine schedule."""
  return plots.schedules(
    {name: getattr(dj.schedules, name)(T) for name in (LINEAR, COSINE)}
  )


def forward():
  """A digit with the same noise at the same steps of both schedules."""
  source = dj.data.load("digits")
  x0 = jnp.asarray(dj.images.from_uint8(source[0]["image"])[None])
  eps = jax.random.normal(jax.random.key(0), x0.shape)
  steps = np.linspace(0, T, SHOWN + 1).astype(int)[:-1]
  rows = [
    [dj.q_sample(getattr(dj.schedules, n)(T), x0, t, eps)[0] for t in steps]
    for n in (LINEAR, COSINE)
  ]
  return plots.pictures(
    np.array(rows),
    titles=[f"$t = {t}$" for t in steps],
    labels=[LINEAR, COSINE],
    size=0.8,
  )


def roll():
  """A swiss roll turned to noise (above) and made of noise (below)."""
  mixture, schedule = dj.mixtures.swiss_roll(), dj.schedules.linear(T)
  steps = (0, 50, 150, 300, 1000)
  x0 = dj.mixtures.draw(mixture, jax.random.key(0), 600)
  eps = jax.random.normal(jax.random.key(1), x0.shape)
  there = np.array([dj.q_sample(schedule, x0, t, eps) for t in steps])
  x_T = jax.random.normal(jax.random.key(2), x0.shape)
  x, way = dj.sample(
    dj.ancestral_step, dj.mixtures.predictor(schedule, mixture), schedule,
    x0.shape, jax.random.key(3), x_T=x_T, keep=steps[-2::-1],
  )  # fmt: skip
  back = np.concatenate([way.x[::-1], x_T[None]])
  return plots.plane(
    np.stack([there, back]),
    titles=[f"$t = {t}$" for t in steps],
    labels=("there", "back"),
    shade=np.stack([np.hypot(*x0.T), np.hypot(*x.T)]),
  )


def paths():
  """Single ways from noise to the roll along the probability flow."""
  mixture, schedule = dj.mixtures.swiss_roll(), dj.schedules.linear(T)
  pairs = dj.timesteps.spaced(T, 50)
  _, way = dj.sample(
    dj.solvers.unipc(), dj.mixtures.predictor(schedule, mixture),
    schedule, (40, 2), jax.random.key(0), pairs=pairs,
    keep=pairs[:, 1].tolist(),
  )  # fmt: skip
  return plots.paths(way.x, points=mixture.means)


def maps():
  """Noise, and where the flow takes it: exactly, and by one network call."""
  x_T = jax.random.normal(jax.random.key(9), (1200, 2))
  exact = flow_maps.exact(x_T)
  rows = [
    [x_T, exact]
    + [
      flow_maps.learn(name, 8000, taught=taught)(x_T)
      for name in flow_maps.METHODS
    ]
    for taught in (True, False)
  ]
  angle = np.arctan2(*np.asarray(x_T).T)
  return plots.plane(
    np.array(rows),
    titles=("noise", "exact", *flow_maps.METHODS),
    labels=("learnt from a teacher", "learnt from data"),
    shade=np.stack([angle, angle]),
    reach=2.2,
  )


def embedding():
  """The sinusoidal embedding of 1000 steps."""
  return plots.embedding(T, 64)


def planned(workdir: pathlib.Path, **asked: Any) -> planning.Plan:
  """What experiments.sample would draw."""
  return planning.plan(workdir, SamplingOptions(**asked))


def samples(workdir: pathlib.Path) -> np.ndarray:
  """64 pictures, as experiments.sample draws them."""
  return dj.images.grid(drawing.draw(planned(workdir)))


def guided(workdir: pathlib.Path) -> np.ndarray:
  """Ten of each class in columns, guided with scale 2."""
  columns = directory.load(workdir)[0].model.num_classes
  plan = planned(workdir, guidance=2.0, num=10 * columns)
  return dj.images.grid(drawing.draw(plan), columns=columns)


def denoising(workdir: pathlib.Path):
  """Four walks from noise to pictures."""
  plan = planned(workdir, num=4)
  generator = drawing.generator(plan)
  walk = np.array(list(generator.walk(plan.params, plan.key, 0)))
  arrived = np.append(plan.pairs[0, 0], plan.pairs[:, 1])
  arrived = arrived[np.linspace(0, len(plan.pairs), len(walk)).astype(int)]
  shown = np.linspace(0, len(walk) - 1, SHOWN).astype(int)
  return plots.pictures(
    walk[shown].swapaxes(0, 1),
    titles=[f"$t = {t}$" for t in arrived[shown]],
    size=0.8,
  )


def editing(workdir: pathlib.Path) -> np.ndarray:
  """The three edits of experiments.edit, one below the other."""
  parts = []
  with tempfile.TemporaryDirectory() as folder:
    for name in edit.EDITS:
      out = pathlib.Path(folder) / f"{name}.png"
      edit.main(
        ["edit", f"--workdir={workdir}", f"--edit={name}", "--num=10",
         f"--out={out}"]
      )  # fmt: skip
      with Image.open(out) as picture:
        parts.append(np.asarray(picture.convert("RGB")))
  gap = np.full((24, parts[0].shape[1], 3), 255, np.uint8)
  return np.concatenate([part for each in parts for part in (each, gap)][:-1])


FORMULAS: dict[str, Callable[[], Any]] = {
  "schedules": schedules,
  "forward": forward,
  "roll": roll,
  "paths": paths,
  "maps": maps,
  "embedding": embedding,
}
OF_A_RUN: dict[str, Callable[[pathlib.Path], Any]] = {
  "samples": samples,
  "denoising": denoising,
  "editing": editing,
  "guided": guided,
}


def wanted(only: str | None, workdir: pathlib.Path | None) -> list[str]:
  """The names of the figures to draw.

  Raises:
    ValueError: If there is no such figure, or it needs a run, another one or
      none.
  """
  if only is not None:
    choices.named("--only", only, {**FORMULAS, **OF_A_RUN})
    if only in OF_A_RUN and workdir is None:
      raise ValueError(f"--only={only} is drawn by a run; pass its --workdir")
    if only in FORMULAS and workdir is not None:
      raise ValueError(f"--only={only} needs no run; leave out --workdir")
  if workdir is None:
    return [only] if only else list(FORMULAS)
  run = dj.runs.open(workdir)
  if len(run.image_shape) != 3:
    raise ValueError(
      f"{workdir} is of {shapes.noun(run.image_shape)}s, and figures are of "
      "pictures; samples of these are plotted by experiments.sample"
    )
  if only == "guided" and not networks.hides_labels(run.config):
    raise ValueError(
      f"--only=guided needs a run with label_dropout, unlike {workdir}"
    )
  if only == "editing":
    edit.check(run)
  if only is not None:
    return [only]
  return ["guided"] if networks.hides_labels(run.config) else usual(run)


def usual(run: dj.runs.Run) -> list[str]:
  """The names of the figures of a run without classes."""
  try:
    edit.check(run)
  except ValueError:
    return ["samples", "denoising"]
  return ["samples", "denoising", "editing"]


def save(path: pathlib.Path, figure: Any) -> None:
  """Writes a Matplotlib figure, or an array of pixels."""
  if isinstance(figure, np.ndarray):
    dj.images.save_png(path, figure)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  # No version, no date: the same figure is the same file.
  figure.savefig(path, dpi=120, metadata={"Software": None})


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  values = flags.FlagValues()
  for name, usual, text in (
    ("only", None, f"one of {', '.join([*FORMULAS, *OF_A_RUN])}"),
    ("out", "docs/figures", "folder to write NAME.png to"),
    ("workdir", None, "run directory, for the figures that a run draws"),
  ):
    flags.DEFINE_string(name, usual, text, flag_values=values)
  cli.parse(argv, values)
  with cli.user_errors():
    workdir = pathlib.Path(values.workdir) if values.workdir else None
    cli.check_out(pathlib.Path(values.out) / "NAME.png")
    for name in wanted(values.only, workdir):
      path = pathlib.Path(values.out) / f"{name}.png"
      if name in FORMULAS:
        figure = FORMULAS[name]()
      else:
        assert workdir is not None
        figure = OF_A_RUN[name](workdir)
      save(path, figure)
      cli.say(f"{path}: {(({**FORMULAS, **OF_A_RUN}[name]).__doc__ or '')}")


if __name__ == "__main__":
  cli.run(main)
