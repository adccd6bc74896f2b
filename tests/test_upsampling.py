"""Upsampling: small pictures in, large ones out, alone and in a cascade."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import UPSAMPLER, assert_one_error, command, params_of

import diffusion_jax as dj
from diffusion_jax.runs import directory, drawing, planning
from diffusion_jax.runs.options import SamplingOptions
from experiments import evaluate, sample, train


def test_shrinking_takes_means_of_boxes():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  small = np.asarray(dj.upsampling.shrink(x, (2, 2)))
  chex.assert_shape(small, (2, 2, 2, 3))
  np.testing.assert_allclose(small[1, 0, 1], x[1, :2, 3:].mean(axis=(0, 1)))
  # Enlarging by repeating pixels is undone.
  again = np.asarray(small).repeat(2, axis=1).repeat(3, axis=2)
  np.testing.assert_allclose(dj.upsampling.shrink(again, (2, 2)), small)


@pytest.mark.parametrize("size", [(3, 4), (0, 4), (16, 16)])
def test_sizes_that_do_not_divide_are_refused(size):
  with pytest.raises(ValueError, match="do not divide those of 8 x 8"):
    dj.upsampling.shrink(jnp.zeros((1, 8, 8, 1)), size)


def test_augmentation_is_the_forward_process_at_steps_of_its_own():
  schedule = dj.schedules.cosine(100)
  x0 = jnp.full((20_000, 2, 2, 1), 0.5)
  x, s = dj.upsampling.augment(jax.random.key(0), schedule, x0, 30)
  assert (int(s.min()), int(s.max())) == (0, 30)
  counts = np.bincount(s, minlength=31)
  expected = len(s) / 31
  assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
  rest = (x - 0.5 * schedule.alpha[s][:, None, None, None]) / jnp.where(
    s > 0, schedule.sigma[s], 1
  )[:, None, None, None]
  np.testing.assert_allclose(x[s == 0], 0.5)
  z = np.asarray(rest[s > 0]).ravel()
  assert abs(z.mean()) < 5 / np.sqrt(z.size)
  assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)


def test_without_noise_nothing_changes():
  x0 = jax.random.normal(jax.random.key(1), (8, 2, 2, 1))
  x, s = dj.upsampling.augment(
    jax.random.key(0), dj.schedules.cosine(10), x0, 0
  )
  np.testing.assert_array_equal(x, x0)
  np.testing.assert_array_equal(s, 0)


@pytest.mark.parametrize("most", [-1, 11])
def test_noise_beyond_the_schedule_is_refused(most):
  x0 = jnp.zeros((1, 2, 2, 1))
  with pytest.raises(ValueError, match=f"most={most} must be a step in 0..T=1"):
    dj.upsampling.augment(jax.random.key(0), dj.schedules.cosine(10), x0, most)


def test_each_image_is_told_its_own_small_picture_and_step():
  net = dj.UNet(channels=8, multipliers=(1,), attention_levels=(), num_blocks=1,
                noisy_low_res=True)  # fmt: skip
  x, t = jnp.ones((2, 8, 8, 1)), jnp.array([3, 3])
  low, s = jnp.ones((2, 4, 4, 1)), jnp.array([0, 5])
  cond = {"low_res": low, "low_res_t": s}
  params = jax.jit(net.init)(jax.random.key(0), x, t, cond)
  # Drawn in NumPy: a program for every shape would take longer.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params
  )

  @jax.jit
  def run(low, s):
    return net.apply(params, x, t, {"low_res": low, "low_res_t": s})

  base = run(low, s)
  for other in (run(low.at[1].set(2.0), s), run(low, s.at[1].set(9))):
    np.testing.assert_allclose(other[0], base[0], atol=1e-6)
    assert np.abs(other[1] - base[1]).max() > 1e-4


@pytest.mark.parametrize("noisy", [False, True])
def test_a_step_where_none_is_expected_is_refused(noisy):
  net = dj.UNet(channels=8, multipliers=(1,), noisy_low_res=noisy)
  x, one = jnp.ones((1, 8, 8, 1)), jnp.ones(1, jnp.int32)
  told = {} if noisy else {"low_res_t": one}
  with pytest.raises(ValueError, match=f"noisy_low_res={noisy} was called"):
    net.init(jax.random.key(0), x, one, {"low_res": x[:, ::2, ::2], **told})


@pytest.fixture
def cascade(zoo, tmp_path, few_numbers):
  """A model of 4 x 4 and one that enlarges to 8 x 8."""
  names = {"small": "base", "upsampler": "upsampler"}
  return tuple(zoo.copy(name, tmp_path / to) for name, to in names.items())


def draw(out, *flags):
  command(sample, "--num=5", *flags, f"--out={out}")
  return np.load(out)["images"]


def test_a_cascade_enlarges_what_its_first_stage_draws(cascade, tmp_path):
  base, upsampler = cascade
  out = tmp_path / "a.npz"
  whole = draw(out, f"--workdir={base}", f"--upsampler={upsampler}")
  chex.assert_shape(whole, (5, 8, 8, 1))
  flags = (f"--workdir={base}", f"--upsampler={upsampler}")
  # The same program run on other batches: the last bit may differ.
  cut = draw(out, *flags, "--batch=2")
  assert np.abs(cut.astype(int) - whole).max() <= 1
  noisy = draw(out, *flags, "--low_res_noise=50")
  assert (noisy != whole).any()
  # By hand, each stage with its own noise.
  root = jax.random.key(0)
  asked = SamplingOptions(num=5, upsampler=(upsampler,))
  plan = planning.plan(base, asked)
  small = drawing.generator(plan)(plan.params, planning.stage_key(root, 0), 5)
  stage = dataclasses.replace(plan.upsamplers[0], low_res=small)
  large = drawing.generator(stage)(stage.params, planning.stage_key(root, 1), 5)
  np.testing.assert_array_equal(dj.images.to_uint8(large), whole)


def test_stages_of_a_cascade_share_no_noise():
  noise = [
    dj.samplers.noise(key, 7, jnp.arange(64), (8, 8, 3)).ravel()
    for key in (
      jax.random.key(3),
      *(planning.stage_key(jax.random.key(3), k) for k in range(3)),
    )
  ]
  # A run that draws alone keeps its pictures.
  np.testing.assert_array_equal(noise[0], noise[1])
  together = np.corrcoef(noise[1:]) - np.eye(3)
  assert np.abs(together).max() < 5 / np.sqrt(noise[0].size)


def test_an_upsampler_alone_enlarges_its_data(cascade, tmp_path):
  x0 = np.stack([dj.data.load("digits")[k]["image"] for k in range(5)])
  small = np.asarray(dj.upsampling.shrink(dj.images.from_uint8(x0), (4, 4)))
  np.savez(tmp_path / "small.npz", images=dj.images.to_uint8(small))
  flags = (f"--workdir={cascade[1]}",)
  out = tmp_path / "a.npz"
  own = draw(out, *flags)
  given = draw(out, *flags, f"--low_res={tmp_path}/small.npz")
  # Only rounded to bytes.
  same = np.abs(own.astype(int) - given).mean()
  np.save(tmp_path / "t.npy", dj.images.to_uint8(small[::-1]))
  other = draw(out, *flags, f"--low_res={tmp_path}/t.npy")
  assert same < 0.2 and np.abs(own.astype(int) - other).mean() > 2


def test_an_upsampler_resumes_with_the_same_bits(
  zoo, tmp_path, few_numbers, capsys
):
  cut = zoo.cut(zoo.copy("upsampler", tmp_path / "cut"), step=4)
  command(train, f"--workdir={cut}")
  assert "continues after step 4 of 8" in capsys.readouterr().out
  whole = params_of(zoo.original("upsampler"))
  chex.assert_trees_all_equal(params_of(cut), whole)


def test_an_upsampler_is_measured(cascade, capsys):
  flags = ("--num=8", "--metrics=bpd,frechet", "--steps=2", "--batch=8")
  command(evaluate, f"--workdir={cascade[1]}", *flags)
  out = capsys.readouterr().out
  assert "variational bound of 8 images" in out
  command(
    evaluate,
    f"--workdir={cascade[0]}",
    f"--upsampler={cascade[1]}",
    "--num=8",
    "--steps=2",
  )
  assert "8 samples to 1797 images" in capsys.readouterr().out


def test_a_cascade_is_measured_batch_by_batch(cascade, tmp_path):
  base, upsampler = cascade
  flags = (f"--workdir={base}", f"--upsampler={upsampler}", "--batch=2")
  command(evaluate, *flags, "--num=5", "--steps=2", "--keep_samples")
  (folder,) = (base / "evaluation").iterdir()
  kept = np.concatenate([np.load(p) for p in sorted(folder.glob("*.npy"))])
  whole = draw(tmp_path / "a.npz", *flags, "--steps=2")
  np.testing.assert_array_equal(kept[:5], whole)


def test_guidance_of_scale_1_is_the_class_alone(few_numbers, tmp_path):
  workdir = tmp_path / "told"
  command(
    train,
    *UPSAMPLER,
    "--config.model.num_classes=0",  # as many as the data have
    "--config.label_dropout=0.1",
    f"--workdir={workdir}",
    "--config.num_steps=2",
  )
  assert directory.read_json(workdir, "config")["model"]["num_classes"] == 10
  plain = draw(tmp_path / "a.npz", f"--workdir={workdir}")
  guided = draw(tmp_path / "a.npz", f"--workdir={workdir}", "--guidance=1")
  assert np.abs(plain.astype(int) - guided).max() <= 1


BAD = {
  "sizes": (
    ["--workdir={1}", "--upsampler={1}"],
    "enlarges 4 x 4 x 1; .*upsampler draws 8 x 8 x 1",
  ),
  "no upsampler": (
    ["--workdir={0}", "--upsampler={0}"],
    "enlarges nothing; .*base draws 4 x 4 x 1",
  ),
  "missing": (["--workdir={0}", "--upsampler={0}x"], "no run directory"),
  "pictures": (["--workdir={0}", "--low_res=digits"], "enlarges no pictures"),
  "no pictures": (["--workdir={1}", "--low_res=/nowhere"], "nowhere"),
  "noise": (
    ["--workdir={1}", "--low_res_noise=51"],
    "trained on pictures noised to steps 0..50",
  ),
  "noise of none": (
    ["--workdir={0}", "--low_res_noise=1"],
    "no upsampler here was trained on noisy pictures",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_cascades_are_one_line(name, cascade, capsys):
  flags, message = BAD[name]
  with pytest.raises(SystemExit) as stop:
    command(sample, *(flag.format(*cascade) for flag in flags))
  assert_one_error(stop, capsys, message)


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.low_res.size=(3,)", "3 x 3 do not divide those of 8 x 8"),
    ("--config.low_res.noise=1001", "must be a step in 0..T=1000"),
  ],
)
def test_bad_upsampler_training_is_one_line(flag, message, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    command(train, *UPSAMPLER, flag, f"--workdir={tmp_path}/a")
  assert_one_error(stop, capsys, message)
