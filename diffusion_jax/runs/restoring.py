"""Restores a run's parameters: raw, or one of its averages."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

import diffusion_jax as dj
from diffusion_jax.runs import choices, configuration, console, networks


def average(config: configuration.Config, wanted: str | None) -> str:
  """The name of the average for the option `ema`, by default the slowest.

  Raises:
    ValueError: If the run has no such average.
  """
  names = networks.averages(config)
  if wanted is None:
    rates = names[: len(config.ema.rates)]
    return (rates or names or ["raw"])[-1]
  kind, _, width = wanted.partition(":")
  if kind != dj.averages.PREFIX or not width:
    for name in names:
      if name == wanted or _number(name) == _number(wanted) is not None:
        return name
    prefix = dj.averages.PREFIX
    spelled = [name.replace(prefix, f"{prefix}:") for name in names]
    return choices.named("`ema`", wanted, ("raw", *spelled))
  try:
    dj.averages.exponent(float(width))
  except ValueError as error:
    raise ValueError(f"`ema={wanted}`: {error}") from error
  if not config.ema.get("stds", ()):
    raise ValueError(
      f"`ema={wanted}`: this run has kept no such averages; train with "
      "`config.ema.stds='(0.05, 0.1)'`"
    )
  return dj.averages.name(float(width))


def _number(name: str) -> float | None:
  """The rate in an average's name: .995 is 0.995."""
  try:
    return float(name)
  except ValueError:
    return None


def weights(state: dj.state.TrainState, ema: str) -> Any:
  """The parameters for the option `ema`, from a state."""
  return dj.optimizers.evaluated(state) if ema == "raw" else state.ema[ema]


def parameters(
  workdir, config, net, shape, ema: str, step: int | None = None
) -> tuple[Any, int]:
  """The parameters for `ema` in a checkpoint, see ``restore``, and its step."""
  try:
    state = restore(workdir, config, net, shape, step)
  except dj.checkpoint.Damaged as error:
    raise ValueError(
      f"{error}; leave out `checkpoint` to take the newest whole one"
    ) from error
  (params,) = parameters_of(workdir, config, net, shape, state, [ema])
  return params, int(state.step)


def parameters_of(
  workdir, config, net, shape, state: dj.state.TrainState, names: Sequence[str]
) -> Iterator[Any]:
  """The parameters for each of these names, at the step of a state.

  A width that was not tracked is computed from the averages in checkpoints and
  snapshots, which are read once.
  """
  end, kept = int(state.step), None
  for ema in names:
    std = dj.averages.std_in(ema)
    if std is None or ema in state.ema:
      yield weights(state, ema)
      continue
    if kept is None:
      kept = _kept(workdir, config, net, shape, state)
    ends = [step for step in sorted(kept) for _ in config.ema.stds]
    widths = [*config.ema.stds] * len(kept)
    trees = [
      jax.device_get(kept[step][dj.averages.name(width)])
      for step, width in zip(ends, widths, strict=True)
    ]
    coefs = dj.averages.coefficients(ends, widths, end, std)
    yield dj.averages.combined(trees, coefs)


def _kept(workdir, config, net, shape, state) -> dict[int, Any]:
  """Every saved average up to the step of a state, by step."""
  end = int(state.step)
  with dj.checkpoint.Checkpoints(
    workdir / "checkpoints", averages=workdir / "averages", read_only=True
  ) as checkpoints:
    kept = checkpoints.averages(state) | {end: state.ema}
    whole = [step for step in checkpoints.steps() if step not in kept]
  for step in whole:  # of a run that is older than small averages
    if step <= end:
      kept[step] = restore(workdir, config, net, shape, step).ema
  return {step: ema for step, ema in kept.items() if step <= end}


def restore(
  workdir, config, net, shape, step: int | None = None
) -> dj.state.TrainState:
  """Reads a checkpoint, by default the newest intact one, onto every device."""
  if not (workdir / "checkpoints").is_dir():
    raise ValueError(f"{workdir} has no checkpoints yet; train first")
  tx = networks.optimizer(config)
  abstract = jax.eval_shape(
    lambda key: networks.init(config, net, shape, tx, key), jax.random.key(0)
  )
  here = dj.parallel.replicated(dj.parallel.data_mesh())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract
  )
  with dj.checkpoint.Checkpoints(
    workdir / "checkpoints", read_only=True
  ) as checkpoints:
    tell = console.warn if step is None else None
    return checkpoints.restore(like, step, tell=tell)
