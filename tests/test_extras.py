"""The library alone, where nothing but its own requirements is installed."""

import subprocess
import sys

import pytest

BLOCKED = (
  "absl.flags", "filelock", "grain", "matplotlib", "ml_collections", "PIL",
  "orbax", "safetensors", "sklearn", "tensorboardX", "tensorflow_datasets",
  "tqdm",
)  # fmt: skip

# Flax brings Orbax and Optax brings absl: what they need of these is theirs.
BARE = f"""
import flax.linen, jax, optax, sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.startswith({BLOCKED}):
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in list(sys.modules):
  if name.startswith({BLOCKED}):
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
"""


def bare(code):
  return subprocess.run(
    [sys.executable, "-c", BARE + code], capture_output=True, text=True
  )


def test_equations_and_networks_need_no_extra():
  done = bare("""
import functools
import diffusion_jax as dj
key = jax.random.key(0)
schedule = dj.schedules.cosine(8)
x0, eps = jax.numpy.zeros((2, 1, 4, 4, 1))
t = dj.timesteps.uniform(key, batch=1, T=8)
x_t = dj.q_sample(schedule, x0, t, eps)
net = dj.UNet(channels=8, multipliers=(1,), attention_levels=(), num_blocks=1)
params = net.init(key, x_t, t)
predict = dj.predictor(functools.partial(net.apply, params), schedule)
loss = dj.losses.simple(predict, schedule, x0, key)
x_s, _ = dj.ddim_step(predict, schedule, x_t, 8, 0, eps)
dj.training.optimizer(lr=1e-3).init(params)
assert loss.shape == (1,) and x_s.shape == x0.shape
""")
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("import diffusion_jax; diffusion_jax.data", "diffusion_jax.data needs"),
    ("from diffusion_jax import runs", "diffusion_jax.runs needs"),
    ("import diffusion_jax.checkpoint", "diffusion_jax.checkpoint needs orbax"),
    (
      "from diffusion_jax import plots; plots.embedding(10, 4)",
      "diffusion_jax.plots needs matplotlib",
    ),
  ],
)
def test_what_needs_the_extra_names_it(code, message):
  done = bare(code)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 1 and message in last
  assert last.endswith("pip install 'diffusion_jax[runs]'")


def test_a_command_without_the_extra_is_one_line_and_status_2():
  done = bare("import experiments.presets")
  assert done.returncode == 2
  assert done.stderr == (
    "the commands need ml_collections: pip install 'diffusion_jax[runs]'\n"
  )
