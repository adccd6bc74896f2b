"""Packages of the extras, with an error that says how to install them.

Schedules, steps, losses and networks need JAX, Flax, Optax, NumPy and
jaxtyping. Data, checkpoints, image files, plots and runs need more.
"""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed_for(what: str, extra: str = "runs") -> Iterator[None]:
  """Turns a missing package into an error that names its extra.

  Raises:
    ModuleNotFoundError: One line, with the command that installs it.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    if (error.name or "diffusion_jax").startswith("diffusion_jax"):
      raise
    raise ModuleNotFoundError(
      f"{what} needs {error.name}: pip install 'diffusion_jax[{extra}]'",
      name=error.name,
    ) from None
