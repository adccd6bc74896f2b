"""Settings for every test: what hides mistakes is made an error."""

import os
import pathlib

# Most of a test's time goes into compiling programs that then run once:
# without LLVM's optimisations the suite takes half as long. Set XLA_FLAGS
# (even to nothing) to test the optimised programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Commands under test compile the same small programs again and again.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
