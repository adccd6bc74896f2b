"""What must happen before JAX starts: flags, other processes, a cache.

The user does nothing for it: the same command runs on a laptop, on one GPU and
on every host of a pod, and detects where it runs.
"""

import glob
import importlib.metadata
import importlib.util
import os

import jax

from diffusion_jax.runs.training import compiling
from experiments.cli import shell

# Several processes, where nothing else tells: the address of the first one,
# how many there are, and which this is.
ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT, INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Set for each process of a job of several by Slurm's srun and by Open MPI.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


_YNN = "--xla_cpu_experimental_ynn_fusion_type=reduce"
# A version of jaxlib that does not know a flag ends the process.
_KNOW_YNN = ("0.10.", "0.11.", "0.12.")


def start() -> None:
  """Prepares JAX; every command starts with it."""
  tune_cpu()
  keep_compiled()
  with shell.user_errors():
    join_processes()


def tune_cpu(effort: int | None = None) -> None:
  """Picks XLA's faster convolutions on a CPU; before JAX has started.

  XLA has two libraries for them. This uses the newer one, YNN, only for sums
  over pixels, which are ten times as fast with it; its convolutions, XLA's
  default, take twice as long in a network as those of the older one, Eigen
  (docs/design/performance.md). Results are equal to 2e-7. Does nothing if the
  user has set XLA_FLAGS.

  Args:
    effort: How much to optimise every program, LLVM's level 0 to 3; by default
      XLA's own choice, 3. If most of the time goes into compiling, 1 is enough.
  """
  flags = []
  if importlib.metadata.version("jaxlib").startswith(_KNOW_YNN):
    flags.append(_YNN)
  if effort is not None:
    flags.append(f"--{compiling.EFFORT}={effort}")
  if flags:
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))


def keep_compiled() -> None:
  """Keeps compiled programs for the next run, unless JAX has a cache already.

  They are kept in ~/.cache/diffusion_jax (or XDG_CACHE_HOME);
  JAX_COMPILATION_CACHE_DIR sets another folder, and
  JAX_ENABLE_COMPILATION_CACHE=false keeps none. Nothing is kept without a home
  directory, as for a container's nameless user.
  """
  home = os.path.expanduser("~")
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
  chosen = jax.config.values["jax_compilation_cache_dir"] is not None
  if not chosen and os.path.isabs(cache):
    jax.config.update(
      "jax_compilation_cache_dir", os.path.join(cache, "diffusion_jax")
    )


def join_processes() -> None:
  """Joins the processes of a pod or a cluster, if this is one of several.

  Cloud TPU, Slurm and Open MPI are detected; elsewhere the three variables
  above set it.

  Raises:
    ValueError: If only some of the three are set, or one is not a number.
  """
  if jax.distributed.is_initialized():
    return
  named = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
  if named:
    missing = {ADDRESS, COUNT, INDEX} - set(named)
    if missing:
      raise ValueError(
        f"{', '.join(named)} is set, {', '.join(sorted(missing))} is not: "
        "several processes need all three"
      )
    try:
      count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
    except ValueError as error:
      raise ValueError(f"{COUNT} and {INDEX} must be whole numbers") from error
    jax.distributed.initialize(os.environ[ADDRESS], count, index)
  elif _on_cloud_tpu() or any(
    int(os.environ.get(name, 1)) > 1 for name in LAUNCHERS
  ):
    jax.distributed.initialize()


def _on_cloud_tpu() -> bool:
  """Whether there are TPU chips here; Colab's single host stays alone."""
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return (
    bool(chips)
    and importlib.util.find_spec("libtpu") is not None
    and "COLAB_RELEASE_TAG" not in os.environ
  )
