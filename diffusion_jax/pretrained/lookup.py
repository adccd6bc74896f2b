"""Settings of one code looked up in those of another, or refused by name."""

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]


def one_of(key: str, value: Any, allowed: tuple) -> None:
  """Refuses a value that is not allowed, with a ``ValueError``."""
  if value not in allowed:
    raise ValueError(f"{key}={value!r} is not one of {allowed}")


def look_up(config: Settings, key: str, table: Mapping) -> Any:
  """Our word for one setting of theirs."""
  one_of(key, config[key], tuple(table))
  return table[config[key]]


def key_of(table: Mapping, value: Any) -> Any:
  """Their word for ours: the first, where several mean the same."""
  return next(key for key, entry in table.items() if entry == value)
