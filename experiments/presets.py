"""Lists the published models.

python -m experiments.presets

configs/improved.py and configs/guided.py train them, and
experiments.import_weights reads their weights.
"""

from collections.abc import Iterator

from absl import flags

from diffusion_jax.models import presets
from experiments import cli
from experiments.cli import devices

HEADS = ("name", "size", "parameters", "schedule", "variance", "loss", "steps")


def rows() -> Iterator[tuple[str, ...]]:
  """One row for each preset; parameters are counted, not quoted."""
  for name, preset in presets.PRESETS.items():
    size = str(preset.size)
    if preset.low_res is not None:
      size = f"{preset.low_res} -> {size}"
    classifier = preset.loss == "cross_entropy"
    guidance = preset.sampling.get("guidance")
    steps = f"{preset.sampling.get('steps', '')}"
    yield (
      name,
      size,
      f"{presets.count_params(preset):,}",
      f"{preset.schedule['name']} {preset.schedule['T']}",
      "classifier" if classifier else preset.variance,
      "" if classifier else preset.loss,
      "" if classifier else steps + (f", x{guidance:g}" if guidance else ""),
    )


def main(argv: list[str]) -> None:
  """The command."""
  devices.start()
  cli.parse(argv, flags.FlagValues())
  table = [HEADS, *rows()]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for row in table:
    cells = zip(row, widths, strict=True)
    cli.say("  ".join(f"{text:<{width}}" for text, width in cells).rstrip())
  cli.say("steps, x: published sampling steps and scale of classifier guidance")


if __name__ == "__main__":
  cli.run(main)
