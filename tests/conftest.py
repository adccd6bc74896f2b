"""Settings for every test: what hides mistakes is made an error."""

import os

# Most of a test's time goes into compiling programs that then run once:
# without LLVM's optimisations the suite takes half as long. Set XLA_FLAGS
# (even to nothing) to test the optimised programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
