"""The benchmark, and counts that would show that a program got slower.

No test asks how long something took: that differs by machine and by day. What
is counted here does not: convolutions, sums, traces.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

import diffusion_jax as dj
from diffusion_jax.models.layers import Norm
from diffusion_jax.runs.training import compiling, flops
from experiments.cli import devices
from experiments.configs import digits
from experiments.tools.benchmark import (
  __main__ as benchmark,
  ours,
  peaks,
  quiet,
  rounds,
  rows,
)

TINY = (
  "--config=configs/digits.py:smoke",
  "--config.model.channels=8",
  "--config.model.groups=2",
  "--config.batch_size=4",
)


def tiny():
  config = digits.get_config("smoke")
  config.model.update({"channels": 8, "multipliers": (1,)})
  config.model.attention_levels = ()
  config.batch_size = 4
  return json.loads(config.to_json_best_effort())


# ------------------------------------------------------------------ counts


def primitives(jaxpr):
  """Every equation, those of inner programs included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from primitives(inner)


def gradient_of(net, shape):
  """The equations of the gradient of a network's output."""
  x, t = jnp.zeros((2, *shape)), jnp.ones(2, jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, t)
  loss = lambda params, x, t: net.apply(params, x, t).sum()
  return list(primitives(jax.make_jaxpr(jax.grad(loss))(params, x, t).jaxpr))


def test_no_convolution_is_computed_twice():
  # One forward, two gradients each; no image's gradient is asked for.
  net = dj.UNet(channels=8, multipliers=(1, 2), num_blocks=1)
  shape = (8, 8, 1)
  x, t = jnp.zeros((2, *shape)), jnp.ones(2, jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]
  layers = sum(p.ndim == 4 for p in jax.tree.leaves(params))
  found = gradient_of(net, shape)
  names = [equation.primitive.name for equation in found]
  # Here, that is on a CPU, the one that halves and the one that doubles are
  # four smaller ones each.
  assert names.count("conv_general_dilated") == 3 * (layers + 3 + 3) - 1


def test_normalisation_sums_over_pixels_twice_and_its_gradient_twice_more():
  x = jnp.zeros((2, 8, 8, 16))
  norm = Norm()
  params = jax.eval_shape(norm.init, jax.random.key(0), x)

  def wide_sums(function):
    program = jax.make_jaxpr(function)(params, x).jaxpr
    return sum(
      equation.primitive.name == "reduce_sum"
      and equation.invars[0].aval.size == x.size
      for equation in primitives(program)
    )

  output = lambda params, x: norm.apply(params, x)
  assert wide_sums(output) == 2
  loss = lambda params, x: (norm.apply(params, x) ** 3 / 3).sum()
  # One more is the loss's own.
  assert wide_sums(jax.value_and_grad(loss, (0, 1))) == 2 + 1 + 2


def test_a_walk_is_one_program_that_holds_the_network_once():
  net = dj.UNet(channels=8, multipliers=(1, 2), num_blocks=1)
  x, t = jnp.zeros((2, 8, 8, 1)), jnp.ones(2, jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, t)
  schedule = dj.schedules.linear(1000)
  calls = itertools.count()

  def walk(params, key):
    def apply(x_t, t):
      next(calls)
      return net.apply(params, x_t, t)

    pairs = dj.timesteps.every(1000)
    return dj.sample(
      dj.ancestral_step,
      dj.predictor(apply, schedule),
      schedule,
      x.shape,
      key,
      pairs=pairs,
    )[0]

  program = jax.make_jaxpr(walk)(params, jax.random.key(0)).jaxpr
  names = [equation.primitive.name for equation in program.eqns]
  assert names.count("scan") == 1
  assert next(calls) == 1


def test_flags_for_a_cpu_are_those_that_this_jaxlib_knows(monkeypatch):
  # One that it does not know would end the process.
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  devices.tune_cpu(effort=1)
  start = "import jax; print(jax.jit(lambda x: x + 1)(1))"
  done = subprocess.run(
    [sys.executable, "-c", start], capture_output=True, text=True, timeout=60
  )
  assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize("version", ["0.9.2", "0.12.1", "9.0.0"])
def test_flags_for_a_cpu_are_left_to_who_knows_better(version, monkeypatch):
  monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  devices.tune_cpu()
  flags = os.environ.get("XLA_FLAGS", "")
  assert ("ynn" in flags) == (version == "0.12.1")
  monkeypatch.setenv("XLA_FLAGS", "")
  devices.tune_cpu()
  assert os.environ["XLA_FLAGS"] == ""


def test_programs_that_run_once_are_compiled_in_a_hurry(monkeypatch):
  name = "xla_backend_optimization_level"
  monkeypatch.setenv("XLA_FLAGS", "")
  assert compiling.compiler_options(effort=0) == {name: 0}
  monkeypatch.setenv("XLA_FLAGS", f"--{name}=1")
  assert compiling.compiler_options(effort=0) is None
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert compiling.compiler_options(effort=0) is None


def test_parameters_do_not_depend_on_how_hard_their_program_is_compiled():
  net = dj.UNet(channels=8, multipliers=(1,), num_blocks=1, attention_levels=())
  x, t = jnp.zeros((1, 8, 8, 1)), jnp.ones(1, jnp.int32)
  drawn = [
    jax.jit(net.init, compiler_options={"xla_backend_optimization_level": n})(
      jax.random.key(0), x, t
    )
    for n in (0, 2)
  ]
  assert all(
    jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *drawn))
  )


# --------------------------------------------------------------- benchmark


@pytest.mark.parametrize("measure", ours.MEASURES)
def test_what_is_measured_can_be_repeated(measure):
  ready = ours.prepare({"config": tiny(), "measure": measure, "steps": 3})
  for _ in range(2):
    ready.repeat()
  facts = ready.facts
  assert facts["images"] > 0
  # A 3 x 3 convolution alone, at 8 x 8, of one image.
  assert facts["flops_per_call"] > 4 * 2 * 9 * 64 * 8 * 8
  if measure == "step":
    assert set(facts["first_step"]) == {
      "init", "trace", "lower", "compile", "run"
    }  # fmt: skip


def test_a_product_is_measured_without_a_network():
  ready = ours.prepare({"config": tiny(), "measure": "product"})
  ready.repeat()
  assert ready.facts == {"flops": 2 * 2048**3}


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_flops_are_those_of_the_published_network(backend, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  from diffusion_jax.models.presets import PRESETS

  net = PRESETS["ddpm-cifar10"].net
  x, t = jnp.zeros((1, 32, 32, 3)), jnp.ones(1, jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, t)
  products = flops.count(jax.make_jaxpr(net.apply)(params, x, t).jaxpr)
  assert products == 2 * 6_221_856_768
  # XLA leaves out multiplications by the zeros around an image, and counts
  # the rest of the network.
  computed = 1.0 if backend == "gpu" else 1 - 5 / 9 * 0.127
  cost = jax.jit(net.apply).lower(params, x, t).cost_analysis()
  assert 0.93 < cost["flops"] / (computed * products) < 1.0


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_gradient_takes_twice_the_flops(backend, monkeypatch):
  # Of attention, strides, upsampling and both ways to write a convolution.
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  net = dj.UNet(channels=16, multipliers=(1, 2), num_blocks=1)
  x, t = jnp.zeros((2, 8, 8, 3)), jnp.ones(2, jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, t)
  loss = lambda params, x, t: net.apply(params, x, t).sum()
  once, both = (
    flops.count(jax.make_jaxpr(f)(params, x, t).jaxpr)
    for f in (loss, jax.grad(loss))
  )
  # Nobody asks for the gradients of the image and of the time.
  image, time = 2 * 2 * 8 * 8 * 9 * 3 * 16, 2 * 2 * 16 * 64
  assert both == 3 * once - image - time


def test_flops_count_loops_and_the_dearest_branch():
  def square(x):
    return x @ x

  def f(x):
    x, _ = jax.lax.scan(lambda x, _: (square(x), None), x, length=5)
    x = jax.lax.cond(x[0, 0] > 0, square, lambda x: square(square(x)), x)
    return jax.checkpoint(jax.jit(square))(x)

  program = jax.make_jaxpr(f)(jnp.zeros((4, 4))).jaxpr
  assert flops.count(program) == (5 + 2 + 1) * 2 * 4**3


def test_what_a_line_says_follows_from_what_was_measured():
  result = {
    "device": "cpu", "dtype": "float32", "devices": 1, "images": 8,
    "calls": 3, "seconds": [1.0, 2.0, 4.0], "peak_bytes": 5_000_000_000,
    "others": 0.12345,
    "first_step": {"compile": 3.0, "run": 1.0},
  }  # fmt: skip
  line = rows.row(result, cost=1e9, at_best=6e9)
  assert line["seconds"] == {"median": 2.0, "min": 1.0, "max": 4.0}
  assert line["images_per_second"] == 4.0
  assert line["gigaflop_per_second"] == 1.5
  assert line["utilisation"] == 0.25
  assert line["peak_gigabytes"] == 5.0
  assert line["first_step"]["all"] == 4.0
  assert line["used_by_others"] == 0.123


def test_ratios_are_taken_turn_by_turn():
  # A machine that slows down for a while slows both.
  ours_took, theirs_took = [1.0, 5.0, 1.0], [2.0, 10.0, 2.0]
  assert rounds.ratio(theirs_took, ours_took) == {
    "median": 2.0, "min": 2.0, "max": 2.0
  }  # fmt: skip


def test_ratios_are_those_of_one_image():
  # Ours takes ten steps in one program.
  ours_did = {"images": 1280, "seconds": [2.0, 3.0]}
  theirs_did = {"images": 128, "seconds": [0.4, 0.3]}
  both = {"parameters": 7, "peak_bytes": 10**9, "others": 0.0}
  found = {"ours": ours_did | both, "theirs": theirs_did | both}
  (line,) = rows.ratios("step", found, "ours")
  assert line == {
    "ratio": "step: theirs to ours",
    "verdict": "none: ratios differ by a factor of 2",
    "time": {"median": 1.5, "min": 1.0, "max": 2.0},
    "memory": 1.0,
  }


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="no /proc")
def test_who_else_uses_the_machine_is_seen():
  started, own = time.monotonic(), time.process_time()
  with_me, without_me = quiet.Watch([]), quiet.Watch([os.getpid()])
  while time.process_time() < own + 0.5:
    pass
  used = with_me.others() - without_me.others()
  cores = (time.monotonic() - started) * os.cpu_count()
  assert abs(used * cores - 0.5) < 0.1  # /proc counts hundredths


def test_a_verdict_needs_a_quiet_machine():
  assert quiet.verdict({"min": 0.8, "max": 0.9}, None) == "behind"


def test_peaks_are_known_by_name_and_only_in_bfloat16():
  assert peaks.published("TPU v5 lite", "bfloat16") == 197e12
  assert peaks.published("TPU v5p", "bfloat16") == 459e12
  assert peaks.published("NVIDIA L4", "bfloat16") == 121e12
  assert peaks.published("NVIDIA A100-SXM4-80GB", "float32") is None
  assert peaks.published("cpu", "bfloat16") is None


def command(*flags):
  benchmark.main(["benchmark", *flags])


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--measures=steps"], "measure 'steps' is not one of step, forward"),
    (["--measures=sample", "--steps=0"], "--steps=0 must be whole numbers"),
    (["--measures=sample", "--steps=2000"], "in 1..T=1000"),
    (["--config.target=noise"], "target 'noise' is not one of"),
    (["--config=configs/classifier.py:smoke"], "this run is a classifier"),
    (["--random=7"], "7 x 7"),
  ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, capsys):
  tiny = () if flags[0].startswith("--config=") else TINY
  with pytest.raises(SystemExit) as stop:
    command(*tiny, *flags)
  assert stop.value.code == 2
  error = capsys.readouterr().err.strip()
  assert "\n" not in error and message in error


def test_peers_that_are_not_installed_are_named(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(SystemExit) as stop:
    command(*TINY, "--peers")
  assert stop.value.code == 2
  assert "--peers needs torch" in capsys.readouterr().err


def test_a_worker_that_fails_says_why():
  job = {"config": {}, "measure": "step"}
  with pytest.raises(RuntimeError, match="a worker ended: .*Error"):
    rounds.race({"ours": ("ours", job, {})}, repeats=1)


def output(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_the_command_measures_what_it_says(capsys):
  command(*TINY, "--steps=2,3", "--repeats=2")
  lines = output(capsys)
  assert [line.get("measure", line.get("ratio")) for line in lines] == [
    "step",
    "first step, compiled before",
    "forward",
    "sample, 2 steps",
    "sample, 3 steps",
    "pipeline",
    "pipeline to training",
  ]
  for line in lines:
    if "images_per_second" in line:
      assert line["repeats"] == 2
      assert line["images_per_second"] > 0
      assert line["peak_gigabytes"] > 0.01
  cold, warm = lines[0]["first_step"], lines[1]["first_step"]
  assert set(cold) == set(warm)


@pytest.mark.slow
@pytest.mark.torch
def test_peers_train_walk_and_are_compared(capsys):
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  command(
    *TINY, "--measures=step,sample", "--steps=2", "--repeats=2", "--peers",
    "--nocompiled",
  )  # fmt: skip
  lines = output(capsys)
  assert sum(line.get("contender") == "diffusers" for line in lines) == 2
  found = [line["ratio"] for line in lines if "ratio" in line]
  assert found == [
    "step: diffusers to ours",
    "sample, 2 steps: diffusers to ours",
  ]
