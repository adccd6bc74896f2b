"""A training run on the devices that this process has, told in numbers.

test_parallel.py starts it where JAX is to see other devices than the tests'
own, or several processes; XLA's flags count only before JAX starts.

  python tests/on_devices.py OUT.npz FLAGS_OF_TRAIN...
"""

import collections
import pathlib
import re
import sys
import tempfile

import jax
import numpy as np

import diffusion_jax as dj
from experiments import devices, loop, train
from experiments.generate import Generator

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


def measure(flags: list[str]) -> dict[str, np.ndarray]:
  """Trains some steps, draws some images; what came of it."""
  argv = ["train", "--config=configs/digits.py:smoke", *flags]
  config, _, _ = loop.command_line(argv, train.DEFAULT_CONFIG)
  folder = pathlib.Path(tempfile.mkdtemp())
  run = train.prepare(config, folder)
  key_init, key = jax.random.split(jax.random.key(0))
  state = run.init(key_init)
  place = dj.parallel.split_block(run.mesh)

  def batch(step):
    rows = run.batches[step]
    return dj.parallel.put(jax.tree.map(lambda x: x[None], rows), place)

  program = run.train_block.lower(run.abstract_state, batch(0), key).compile()
  losses = []
  for step in range(STEPS):
    state, metrics = program(state, batch(step), key)
    losses.append(metrics.loss)
  params = dj.parallel.fetch(state.params)
  generator = Generator(
    config,
    dj.UNet(**config.model.to_dict(), out_channels=1),
    run.source.image_shape,
    sampler="ancestral",
    pairs=dj.timesteps.spaced(1000, 4),
    batch=6,  # no multiple of the devices
  )
  held = {"params": state.params, "ema": state.ema, "moments": state.opt_state}
  return {
    "losses": np.array(jax.device_get(losses)).ravel(),
    "params": np.concatenate([x.ravel() for x in jax.tree.leaves(params)]),
    "samples": generator(state.params, key, 10),
    **{f"bytes_{k}": dj.parallel.bytes_per_device(v) for k, v in held.items()},
    "collectives": np.array(dict(collectives(program.as_text())), object),
    "devices": np.array([jax.device_count(), jax.process_count()]),
  }


if __name__ == "__main__":
  devices.start()
  out, *rest = sys.argv[1:]
  numbers = measure(rest)
  if jax.process_index() == 0:
    np.savez(out, **numbers)
