"""The output of a measurement."""

from collections.abc import Iterator
from typing import Any

from experiments.tools.benchmark import peaks, quiet, rounds


def row(result: dict[str, Any], cost: float, at_best: float) -> dict[str, Any]:
  """The line of one contender.

  Args:
    result: The facts of its worker, "seconds" of each repetition and
      "peak_bytes".
    cost: FLOPs of the network, once.
    at_best: FLOP/s that a product of matrices reaches.

  Returns:
    The line.
  """
  took = rounds.spread(result["seconds"])
  found = {
    key: result[key]
    for key in ("device", "dtype", "parameters", "sampler", "steps")
    if key in result
  }
  found |= {
    "repeats": len(result["seconds"]),
    "seconds": _rounded(took),
    "images_per_second": round(result["images"] / took["median"], 2),
    "peak_gigabytes": round(result["peak_bytes"] / 1e9, 2),
  }
  if result["others"] is not None:
    found["used_by_others"] = round(result["others"], 3)
  if "calls" in result:
    speed = cost * result["calls"] / took["median"]
    said = peaks.published(result["device"], result["dtype"])
    peak = said or at_best
    found |= {
      "seconds_per_call": round(took["median"] / result["calls"], 5),
      "model_gigaflop": round(cost * result["calls"] / 1e9, 2),
      "gigaflop_per_second": round(speed / 1e9, 1),
      "peak_gigaflop_per_second": round(peak / 1e9, 1),
      "peak_from": "its maker" if said else "a product of matrices",
      "utilisation": round(speed / peak / result["devices"], 3),
    }
  if "first_step" in result:
    found["first_step"] = with_sum(result["first_step"])
  return found


def with_sum(seconds: dict[str, float]) -> dict[str, float]:
  """Seconds of parts, and of all of them."""
  return _rounded(seconds | {"all": sum(seconds.values())})


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
  return {name: float(f"{value:.4g}") for name, value in seconds.items()}


def ratios(
  what: str, found: dict[str, dict[str, Any]], ours: str
) -> Iterator[dict[str, Any]]:
  """Each peer's time for an image, and its memory, divided by ours.

  Args:
    what: The measurement.
    found: By contender, the facts, "seconds", "others" and "peak_bytes".
    ours: Which of them is ours.

  Yields:
    A line for each peer.

  Raises:
    RuntimeError: If the networks are not the same.
  """
  own = found[ours]
  for name, theirs in found.items():
    if name == ours:
      continue
    if own["parameters"] != theirs["parameters"]:
      raise RuntimeError(
        f"{name} has {theirs['parameters']:,} parameters, ours has "
        f"{own['parameters']:,}: these times do not compare"
      )
    time = rounds.ratio(_per_image(theirs), _per_image(own))
    yield {
      "ratio": f"{what}: {name} to ours",
      "verdict": quiet.verdict(time, own["others"]),
      "time": _rounded(time),
      "memory": round(theirs["peak_bytes"] / own["peak_bytes"], 2),
    }


def _per_image(result: dict[str, Any]) -> list[float]:
  """Seconds of each repetition; ours may be several steps in one program."""
  return [seconds / result["images"] for seconds in result["seconds"]]
