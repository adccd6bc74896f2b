"""More devices change where a run is computed, and nothing else."""

import math
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import on_devices
import pytest
import toy
from commands import BLIND, TINY

import diffusion_jax as dj

# Wide enough that most arrays are worth splitting.
FLAGS = (*TINY[1:], "--config.model.channels=16")
WORKER = pathlib.Path(on_devices.__file__)
LIMIT = 300  # seconds, for a process that hangs
# Also where the tests' own programs are optimised: these run for seconds.
QUICK = os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=0"


def start(out, *flags, count: int, **environment) -> subprocess.Popen:
  """The worker, on ``count`` forced devices."""
  xla = f"--xla_force_host_platform_device_count={count}"
  return subprocess.Popen(
    [sys.executable, str(WORKER), str(out), *FLAGS, *flags],
    env={
      **os.environ,
      "XLA_FLAGS": f"{xla} {QUICK}",
      **environment,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(workers, out) -> dict:
  """What they found, once all of them have ended well."""
  try:
    for worker in workers:
      text, _ = worker.communicate(timeout=LIMIT)
      assert worker.returncode == 0, text
  finally:
    for worker in workers:
      worker.kill()
  with np.load(out, allow_pickle=True) as file:
    return {k: v.item() if v.dtype == object else v for k, v in file.items()}


def processes(count: int) -> list[dict[str, str]]:
  """What tells each of several processes, on this machine, of the others."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  return [
    {
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": str(count),
      "JAX_PROCESS_ID": str(index),
    }
    for index in range(count)
  ]


@pytest.fixture(scope="module")
def one():
  """The run on the tests' one device."""
  return on_devices.measure(list(FLAGS))


@pytest.fixture(scope="module")
def few_one():
  """The same, of a network of a few numbers."""
  with toy.networks():
    return on_devices.measure(list(FLAGS))


@pytest.fixture(scope="module")
def few_eight(tmp_path_factory):
  out = tmp_path_factory.mktemp("few") / "out.npz"
  return finish([start(out, on_devices.FEW, count=8)], out)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
  out = tmp_path_factory.mktemp("eight") / "out.npz"
  return finish([start(out, count=8)], out)


@pytest.fixture(scope="module")
def eight_split(tmp_path_factory):
  out = tmp_path_factory.mktemp("split") / "out.npz"
  flags = ("--config.fsdp=True", "--config.micro_batches=2")
  return finish([start(out, *flags, count=8)], out)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
  out = tmp_path_factory.mktemp("two") / "out.npz"
  workers = [start(out, count=2, **settings) for settings in processes(2)]
  return finish(workers, out)


@pytest.mark.parametrize(
  ("name", "devices"),
  [
    ("few_eight", [8, 1]),
    pytest.param("eight", [8, 1], marks=pytest.mark.slow),
    pytest.param("eight_split", [8, 1], marks=pytest.mark.slow),
    pytest.param("two_processes", [4, 2], marks=pytest.mark.slow),
  ],
)
def test_more_devices_give_the_same_run(name, devices, request):
  many = request.getfixturevalue(name)
  one = request.getfixturevalue("few_one" if "few" in name else "one")
  np.testing.assert_array_equal(many["devices"], devices)
  assert len(one["losses"]) == 50
  np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
  np.testing.assert_allclose(many["params"], one["params"], atol=1e-4)
  # Image by image: noise is named by the image, not by the device.
  np.testing.assert_allclose(many["samples"], one["samples"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight", "eight_split"])
def test_a_step_is_that_of_pmap(name, request):
  error = request.getfixturevalue(name)["pmap_error"]
  # Adam's second step moves parameters whose gradient is almost 0 by rounding.
  assert 0 < error < 1e-3


@pytest.mark.heavy  # for what it compares
def test_only_gradients_and_figures_cross_devices(few_eight, few_one):
  messages = few_eight["collectives"]
  assert set(messages) == {"all-reduce"}, messages
  assert len(messages["all-reduce"]) == 1
  (shapes,) = messages["all-reduce"]
  sent = sum(elements(shapes))
  # Every gradient once, and the mean loss and its quarters.
  assert 0 <= sent - len(few_one["params"]) <= 16


def elements(shapes: list[str]) -> list[int]:
  return [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]


@pytest.mark.slow
def test_split_states_send_parameters_and_gradients_only(eight_split, one):
  messages = eight_split["collectives"]
  assert set(messages) <= {"all-reduce", "all-gather", "reduce-scatter"}
  reduced = [
    sum(elements(shapes))
    for kind in ("all-reduce", "reduce-scatter")
    for shapes in messages.get(kind, ())
  ]
  # One message has the gradients; the others have sums of squares, one of
  # each array, and mean losses.
  assert max(reduced) >= len(one["params"]) and sorted(reduced)[-2] <= 64
  net = dj.UNet(
    channels=16, multipliers=(1,), num_blocks=1, attention_levels=()
  )
  params = jax.eval_shape(
    lambda key: net.init(key, jnp.zeros((1, 8, 8, 1)), jnp.ones(1, jnp.int32)),
    jax.random.key(0),
  )
  known = {math.prod(x.shape) for x in jax.tree.leaves(params)}
  gathered = [n for shapes in messages["all-gather"] for n in elements(shapes)]
  assert set(gathered) <= known  # no activation
  assert len(gathered) <= 2 * len(jax.tree.leaves(params))  # there and back


@pytest.mark.slow
def test_split_states_take_an_eighth_of_the_memory(eight, eight_split, one):
  for part in ("params", "ema", "moments"):
    whole, split = (int(run[f"bytes_{part}"]) for run in (eight, eight_split))
    assert whole == int(one[f"bytes_{part}"])
    # Biases and the like are not worth splitting.
    assert whole / 8 <= split < whole / 8 + 0.12 * whole


@pytest.mark.parametrize("name", ["ddpm-cifar10", "adm-imagenet256"])
def test_published_networks_split_almost_wholly(name):
  mesh = jax.sharding.AbstractMesh((64,), ("data",))
  preset = dj.models.presets.PRESETS[name]
  shapes = dj.models.presets.param_shapes(preset)
  places = dj.parallel.fully_split(shapes, mesh)
  placed = jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    shapes,
    places,
  )
  whole = 4 * preset.params
  assert dj.parallel.bytes_per_device(placed) < 1.12 * whole / 64


@pytest.mark.slow
def test_one_hosts_sigterm_stops_every_process_after_the_same_step(tmp_path):
  def begin(steps):
    settings = processes(2)
    flags = (
      *BLIND,
      f"--workdir={tmp_path}/run",
      f"--config.num_steps={steps}",
      "--config.every.checkpoint=1000",
      "--config.optim.decay_steps=10_000",
    )
    return [
      subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *flags],
        env={**os.environ, "XLA_FLAGS": QUICK, **setting},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for setting in settings
    ]

  def end(workers):
    try:
      return [worker.communicate(timeout=LIMIT)[0] for worker in workers]
    finally:
      for worker in workers:
        worker.kill()

  workers = begin(10_000)
  printed = ""
  for line in iter(workers[0].stdout.readline, ""):
    printed += line
    if line.startswith("step 10/"):
      break
  workers[1].send_signal(signal.SIGTERM)
  first, _ = end(workers)
  assert [worker.returncode for worker in workers] == [0, 0], printed + first
  assert "stopped by SIGTERM: the run is saved after step" in first
  step = int(first.rpartition("after step ")[2].partition(";")[0])

  workers = begin(step + 2)
  first, second = end(workers)
  assert [worker.returncode for worker in workers] == [0, 0], first + second
  assert f"continues after step {step} of {step + 2}" in first
  assert "continues" not in second  # the first process speaks
