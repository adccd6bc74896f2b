"""Settings for every test: what hides mistakes is made an error."""

import os
import pathlib

# Most of a test's time goes into compiling programs that then run once:
# without LLVM's optimisations, and with XLA's older emitter of fused loops,
# that takes a third of the time. Set XLA_FLAGS (even to nothing) to test the
# optimised programs.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)
# Commands under test compile the same small programs again and again.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", not os.environ.get("NOKEY"))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
  """Trained runs, see zoo.py."""
  from zoo import Zoo

  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent  # that of all processes of the session
  return Zoo(folder / "zoo")


@pytest.fixture
def few_numbers():
  """Every network is one of a few numbers, see toy.py."""
  import toy

  with toy.networks():
    yield
