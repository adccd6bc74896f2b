"""Translates settings between codebases, or rejects them with their name."""

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]


def one_of(key: str, value: Any, allowed: tuple) -> None:
  """Raises a ``ValueError`` for a value that is not allowed."""
  if value not in allowed:
    raise ValueError(f"{key}={value!r} is not one of {allowed}")


def look_up(config: Settings, key: str, table: Mapping) -> Any:
  """Our value for a setting of theirs."""
  one_of(key, config[key], tuple(table))
  return table[config[key]]


def key_of(table: Mapping, value: Any) -> Any:
  """Their value for ours: the first, if several mean the same."""
  return next(key for key, entry in table.items() if entry == value)
