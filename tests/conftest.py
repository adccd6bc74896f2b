"""Settings for every test: what hides mistakes is made an error."""

import gc
import importlib.util
import mmap
import os
import pathlib

# Most of a test's time goes into compiling programs that then run once. These
# flags of XLA make that take a third: no optimisation by LLVM, the older
# emitter of fused loops, no threads to split a small program among. With
# XLA_FLAGS= programs are optimised, as those of commands.
QUICK = (
  "--xla_backend_optimization_level=0",
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
)


def known(flag: str) -> bool:
  """Whether this jaxlib knows a flag; one that it does not ends the process."""
  folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
  name = flag.strip("-").partition("=")[0].encode()
  for path in folder.glob("libjax_common.*"):
    with (
      path.open("rb") as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
      # Between zeros, as a name that ends there: others may hold it.
      return library.find(b"\0" + name + b"\0") >= 0
  return False


chosen = os.environ.get("XLA_FLAGS")
if chosen is None:
  os.environ["XLA_FLAGS"] = " ".join(filter(known, QUICK))
# Processes and commands under test compile the same small programs again.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import heavy  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

if chosen == "":
  from experiments.cli import devices

  del os.environ["XLA_FLAGS"]
  devices.tune_cpu()

jax.config.update("jax_numpy_rank_promotion", "raise")

# Looking for a key that is used twice, operation by operation, would take a
# fifth of the time here: CI does it once, with JAX_DEBUG_KEY_REUSE, for the
# first of these; the others test equations at noise that is given.
UNCHECKED = {
  "test_bound", "test_diagnostics", "test_editing", "test_guidance",
  "test_importance", "test_likelihood", "test_losses", "test_mixtures",
  "test_pretrained", "test_process", "test_samplers", "test_schedules",
  "test_timesteps", "test_training", "test_unet",
  "test_continuous", "test_edm", "test_flow", "test_solvers",
  "test_zero_terminal",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Leaves to the gate what heavy.txt lists; the longest begin first."""
  heavy.mark(items)
  items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """Notes what a test takes, for ``python -m tests.heavy``."""
  before = heavy.cpu_seconds()
  try:
    return (yield)
  finally:
    if heavy.TIMES in os.environ:
      heavy.note(item, heavy.cpu_seconds() - before)


def pytest_collection_finish():
  """Garbage is looked for among what tests have just made.

  Not among what was imported, and rarely among all programs that were traced,
  which would take a tenth of the time.
  """
  gc.freeze()
  gc.set_threshold(*gc.get_threshold()[:2], 1000)


@pytest.fixture(autouse=True)
def keys_are_used_once(request):
  """Makes a key that is used twice an error."""
  before = jax.config.jax_debug_key_reuse
  checked = request.path.stem not in UNCHECKED
  # Of all threads: a program is traced anew where settings differ.
  jax.config.update("jax_debug_key_reuse", checked or before)
  yield
  jax.config.update("jax_debug_key_reuse", before)


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
