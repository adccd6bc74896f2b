"""Checks names and arguments in a configuration."""

from collections.abc import Callable
from typing import Any


def named(kind: str, name: str, choices):
  """Checks a name in a configuration.

  Raises:
    ValueError: If it is not one of the choices; the message has them.
  """
  if name not in choices:
    raise ValueError(f"{kind} {name!r} is not one of {', '.join(choices)}")
  return name


def call(kind: str, function: Callable, options: dict):
  """function(**options); a stray or missing option is a user's error."""
  try:
    return function(**options)
  except TypeError as error:
    raise ValueError(f"{kind}: {error}") from error


def given(options: Any) -> dict[str, Any]:
  """The options that are not left to their defaults by None."""
  return {key: value for key, value in options.items() if value is not None}
