"""A training run on the devices that this process has, told in numbers.

test_parallel.py starts it where JAX is to see other devices than the tests'
own, or several processes; XLA's flags count only before JAX starts.

  python tests/on_devices.py OUT.npz [--few] FLAGS_OF_TRAIN...
"""

import collections
import contextlib
import pathlib
import re
import sys
import tempfile

import jax
import numpy as np
import optax
import toy

import diffusion_jax as dj
from diffusion_jax.runs import networks, processes
from diffusion_jax.runs.generate import Generator
from diffusion_jax.runs.options import SamplingOptions
from diffusion_jax.runs.training import diffusion
from experiments import train
from experiments.cli import devices, training

FEW = "--few"  # a network of a few numbers
STEPS = 50
COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|"
  r"collective-permute)(?:-start)?\("
)


def collectives(text: str) -> dict[str, list]:
  """Shapes that each kind of message between devices carries, by message."""
  found = collections.defaultdict(list)
  for shapes, kind in COLLECTIVE.findall(text):
    found[kind].append(re.findall(r"[a-z]\w*\[([\d,]*)\]", shapes))
  return found


def pmap_step(config, net, state, batch, key):
  """The parameters after a step, by another way: jax.pmap and pmean.

  Written for the simple loss without dropout, from the equations.
  """
  schedule, tx = processes.schedule(config), networks.optimizer(config)
  key_t, key_eps, _ = jax.random.split(jax.random.fold_in(key, state.step), 3)
  x0, count = batch["image"], jax.device_count()
  t = jax.random.randint(key_t, x0.shape[:1], 1, schedule.T + 1)
  eps = jax.random.normal(key_eps, x0.shape)

  def loss(params, x0, t, eps):
    alpha, sigma = (
      table[t].reshape(-1, 1, 1, 1)
      for table in (schedule.alpha, schedule.sigma)
    )
    x_t = alpha * x0 + sigma * eps
    return ((net.apply({"params": params}, x_t, t) - eps) ** 2).mean()

  def gradient(params, *part):
    return jax.lax.pmean(jax.grad(loss)(params, *part), "devices")

  parts = [np.asarray(x).reshape(count, -1, *x.shape[1:]) for x in (x0, t, eps)]
  grads = jax.pmap(gradient, "devices", in_axes=(None, 0, 0, 0))(
    state.params, *parts
  )
  grads = jax.tree.map(lambda g: np.asarray(g[0]), grads)
  updates, _ = tx.update(grads, state.opt_state, state.params)
  return optax.apply_updates(state.params, updates)


def flat(params) -> np.ndarray:
  """All parameters in one row."""
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def measure(flags: list[str]) -> dict[str, np.ndarray]:
  """Trains some steps, draws some images; what came of it."""
  argv = ["train", "--config=configs/digits.py:smoke", *flags]
  config = training.command_line(argv, train.DEFAULT_CONFIG).config
  folder = pathlib.Path(tempfile.mkdtemp())
  run = diffusion.prepare(config, folder)
  key_init, key = jax.random.split(jax.random.key(0))
  state = run.init(key_init)
  place = dj.parallel.split_block(run.mesh)

  def batch(step):
    rows = run.batches[step]
    return dj.parallel.put(jax.tree.map(lambda x: x[None], rows), place)

  program = run.train_block.lower(run.abstract_state, batch(0), key).compile()
  net = networks.model(config, run.source.image_shape, None)
  losses, pmap_error = [], 0.0
  for step in range(STEPS):
    by_pmap = None
    # At step 0 the rate is 0.
    if step == 1 and jax.process_count() == 1 and isinstance(net, dj.UNet):
      before = dj.parallel.fetch(state)
      by_pmap = pmap_step(config, net, before, run.batches[step], key)
    state, metrics = program(state, batch(step), key)
    losses.append(metrics.loss)
    if by_pmap is not None:
      moved = flat(by_pmap) - flat(before.params)
      ours = flat(dj.parallel.fetch(state.params)) - flat(before.params)
      pmap_error = np.abs(ours - moved).max() / np.abs(moved).max()
  params = dj.parallel.fetch(state.params)
  generator = Generator(
    config,
    net,
    run.source.image_shape,
    # The batch is no multiple of the devices.
    SamplingOptions(sampler="ancestral", batch=6),
    dj.timesteps.spaced(1000, 4),
  )
  held = {"params": state.params, "ema": state.ema, "moments": state.opt_state}
  return {
    "losses": np.array(jax.device_get(losses)).ravel(),
    "params": flat(params),
    "pmap_error": pmap_error,
    "samples": generator(state.params, key, 10),
    **{f"bytes_{k}": dj.parallel.bytes_per_device(v) for k, v in held.items()},
    "collectives": np.array(dict(collectives(program.as_text())), object),
    "devices": np.array([jax.device_count(), jax.process_count()]),
  }


if __name__ == "__main__":
  devices.start()
  out, *rest = sys.argv[1:]
  few = FEW in rest
  with toy.networks() if few else contextlib.nullcontext():
    numbers = measure([flag for flag in rest if flag != FEW])
  if jax.process_index() == 0:
    np.savez(out, **numbers)
