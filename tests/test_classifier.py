"""Classifiers: what they learn against closed forms, the commands as run."""

import functools
import json
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CLASSIFIER, assert_one_error, command, rows

import diffusion_jax as dj
from diffusion_jax.runs import (
  directory,
  guiding,
  networks,
  processes,
  restoring,
  samplers,
)
from diffusion_jax.runs.generate import Generator
from diffusion_jax.runs.options import SamplingOptions
from diffusion_jax.runs.training import classification
from experiments import sample, train, train_classifier
from experiments.configs import common


def test_cross_entropy_of_bayes_rule_is_the_entropy_left():
  # x_0 = +-1 of one pixel: H(y | x_t) is one integral over x_t.
  schedule = dj.schedules.cosine(1000)
  n, step = 20_000, 400
  y = jnp.arange(n) % 2
  x0 = (2.0 * y - 1).reshape(n, 1, 1, 1)
  t = jnp.full(n, step)
  eps = jax.random.normal(jax.random.key(0), x0.shape)
  alpha, sigma = float(schedule.alpha[step]), float(schedule.sigma[step])

  def classify(x_t, t):
    logit = 2 * alpha * x_t.reshape(-1) / sigma**2
    return jnp.stack([0 * logit, logit], axis=1)

  def loss(classify):
    objective = dj.objectives.classification(
      lambda params, x_t, t, cond, key: classify(x_t, t), schedule
    )
    examples = dj.objectives.Noised(x0, y, t, eps)
    return objective.loss({}, examples, jax.random.key(1))

  x = np.linspace(-8, 8, 4001)
  density = np.exp(-((x - alpha) ** 2) / (2 * sigma**2)) / (
    sigma * np.sqrt(2 * np.pi)
  )
  left = np.logaddexp(0, -2 * alpha * x / sigma**2)
  entropy = (density * left).sum() * (x[1] - x[0])
  got = np.asarray(loss(classify))
  assert 0.05 < entropy < 0.6  # neither certain nor ignorant
  assert abs(got.mean() - entropy) < 5 * got.std() / np.sqrt(n)
  ignorant = loss(lambda x_t, t: 0 * classify(x_t, t))
  np.testing.assert_allclose(ignorant, np.log(2), rtol=1e-6)


def test_accuracy_is_counted_in_the_right_quarter():
  # Right where t is small: all of the first half, none of the second.
  schedule = dj.schedules.cosine(40)
  label = jnp.arange(64) % 3

  class Half:
    def apply(self, _, x_t, t):
      sure = jnp.where(t <= 20, 1.0, -1.0)
      return sure[:, None] * jax.nn.one_hot(label, 3)

  right, count = classification.right_by_quarter(
    Half(), schedule, {}, jnp.zeros((64, 2, 2, 1)), label, jax.random.key(0)
  )
  np.testing.assert_array_equal(count, 16)
  np.testing.assert_array_equal(right, [16, 16, 0, 0])


def test_held_out_examples_are_apart_and_of_every_class():
  source = dj.data.load("digits")
  learnt, held = dj.data.hold_out(source, 5)
  assert (len(learnt), len(held)) == (1438, 359)
  assert learnt.fingerprint != held.fingerprint != source.fingerprint
  np.testing.assert_array_equal(held[0]["image"], source[4]["image"])
  every = np.sort([*learnt.chosen, *held.chosen])
  np.testing.assert_array_equal(every, np.arange(1797))
  labels = held.gather(np.arange(len(held)))["label"]
  assert np.bincount(labels).min() > 20


@pytest.mark.parametrize("every", [1, -3, 1798])
def test_bad_parts_to_hold_out_are_refused(every):
  with pytest.raises(ValueError, match=f"held_out={every} must be 2 or more"):
    dj.data.hold_out(dj.data.load("digits"), every)


@pytest.fixture
def runs_of_both(zoo, tmp_path, few_numbers):
  """A diffusion model that knows no classes, and a classifier."""
  names = {"few": "diffusion", "judge": "classifier"}
  return tuple(zoo.copy(name, tmp_path / to) for name, to in names.items())


def checkpoint(workdir):
  config, data = directory.load(workdir)
  shape = tuple(data["image_shape"])
  net = networks.network(config, shape, data["num_classes"])
  return restoring.restore(workdir, config, net, shape)


def test_held_out_pictures_get_noise_of_their_own():
  # Step 4 and the part that begins with picture 4 would be the same draw.
  seen = []

  def right(params, image, label, key):
    seen.append(jax.random.key_data(key).tolist())
    return np.zeros(4), np.ones(4)

  held = dj.data.hold_out(dj.data.load("digits"), 5)[1]
  key = jax.random.key(0)
  state = types.SimpleNamespace(params=None, opt_state=(), step=4)
  classification.measure_held_out(right, held, 4, state, key)
  steps = [jax.random.fold_in(key, step) for step in range(500)]
  assert len(seen) > 50
  assert not any(jax.random.key_data(k).tolist() in seen for k in steps)


def test_a_classifiers_run_logs_accuracies_and_resumes(
  zoo, tmp_path, few_numbers, capsys
):
  whole = zoo.original("judge")
  logged = rows(whole / "metrics.jsonl")
  assert [row["step"] for row in logged] == [2, 4, 6, 8]
  for row in logged:
    for quarter in range(4):
      assert 0 <= row[f"accuracy_q{quarter}"] <= 1
      assert 0 <= row[f"held_out_accuracy_q{quarter}"] <= 1
  # Ten classes about which nothing is known yet.
  assert abs(logged[0]["loss"] - np.log(10)) < 0.5
  cut = zoo.cut(zoo.copy("judge", tmp_path / "cut"), step=4)
  command(train, f"--workdir={cut}")
  out = capsys.readouterr().out
  assert "continues after step 4 of 8" in out
  assert "held-out pictures classified rightly" in out
  chex.assert_trees_all_equal(checkpoint(cut), checkpoint(whole))


def draw(out, diffusion, *flags):
  command(sample, f"--workdir={diffusion}", "--num=8", *flags, f"--out={out}")
  return np.load(out)["images"]


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "unipc"])
def test_a_classifier_pushes_samples_to_what_it_takes_for_the_class(
  sampler, runs_of_both, tmp_path
):
  diffusion, classifier = runs_of_both
  flags = (f"--sampler={sampler}", "--steps=8", "--classes=3,5")
  guided = (*flags, f"--classifier={classifier}")
  draws = functools.partial(draw, tmp_path / "a.npz", diffusion)
  free = draws(*flags[:2])
  off, on = draws(*guided, "--guidance=0"), draws(*guided, "--guidance=50")
  # The same equations, the prediction clipped before instead of after.
  assert np.abs(off.astype(int) - free).max() <= 1

  state = checkpoint(classifier)
  config, _ = directory.load(classifier)
  net = networks.classifier(config, (8, 8, 1), 10)

  def log_prob(images):
    x = dj.images.from_uint8(images)
    logits = jax.jit(net.apply)({"params": state.params}, x, jnp.ones(8, int))
    return float(dj.guidance.log_prob(logits, jnp.array([3, 5] * 4)).mean())

  assert log_prob(on) > log_prob(off) + 0.01


def test_another_scale_compiles_nothing():
  traces = []

  class Net:
    def apply(self, _, x_t, t, cond):
      traces.append(1)
      return x_t * 0.1 + dj.process.per_example(cond["y"], x_t) * 0.01

  config = common.make()
  config.model.num_classes = 3
  schedule = processes.schedule(config)
  generator = Generator(
    config, Net(), (2, 2, 1),
    SamplingOptions(sampler="ddim", batch=4, guidance=1.5),
    samplers.walk(schedule, "ddim", None, 4),
  )  # fmt: skip
  one = generator({}, jax.random.key(0), 4)
  count = len(traces)
  generator.guidance = 4.0
  other = generator({}, jax.random.key(0), 4)
  assert len(traces) == count > 0
  assert np.abs(one - other).max() > 0


BAD_GUIDES = {
  "no classifier": (["--classifier={diffusion}"], "is not a classifier"),
  "missing": (["--classifier={diffusion}x"], "no run directory"),
  "no class": (
    ["--classifier={classifier}", "--classes=ten"],
    "'ten' is not one of 0, 1",
  ),
  "sampled": (["--workdir={classifier}"], "draws no images"),
}


@pytest.mark.parametrize("name", BAD_GUIDES)
def test_bad_classifiers_are_one_line(name, runs_of_both, capsys):
  flags, message = BAD_GUIDES[name]
  named = dict(zip(("diffusion", "classifier"), runs_of_both, strict=True))
  flags = [f"--workdir={runs_of_both[0]}", *(f.format(**named) for f in flags)]
  with pytest.raises(SystemExit) as stop:
    command(sample, *flags)
  assert_one_error(stop, capsys, message)


def noised_in_fewer_steps(run):
  config = directory.read_json(run, "config")
  config["schedule"]["T"] = 500
  (run / "config.json").write_text(json.dumps(config))


def of_larger_pictures(run):
  data = directory.read_json(run, "data")
  data["image_shape"] = [16, 16, 1]
  (run / "data.json").write_text(json.dumps(data))


OURS = {"num_classes": 2, "class_names": ["cat", "dog"]}
CELSIUS = {"dtype": "float32", "centre": 0.0, "scale": 40.0, "bounded": True}


@pytest.mark.parametrize(("theirs", "message"), [
  ({"values": CELSIUS},
   r"^it was trained on values of float32 -40 to 40, the run on uint8 0 to "
   r"255: train"),
  ({"class_names": ["dog", "cat"]}, "^it has 'dog' as class 0, the run 'cat'"),
  ({"num_classes": 1}, "^it has num_classes 1, the run 2: train both on the"),
])  # fmt: skip
def test_a_run_of_other_units_or_classes_is_refused(theirs, message):
  with pytest.raises(ValueError, match=message):
    guiding.check_same_data("it", {**OURS, **theirs}, OURS)


def test_runs_whose_numbers_and_classes_mean_the_same_go_together():
  # 16 bits in full are as bright as bytes; imported weights have no names.
  wide = {"dtype": "uint16", "centre": 32767.5, "scale": 32767.5}
  for theirs in ({"values": wide}, {"class_names": ["0", "1"]}):
    guiding.check_same_data("it", {**OURS, **theirs}, OURS)
  others = {"num_classes": 1, "class_names": ["dog"]}
  guiding.check_same_data("it", others, OURS, classes=False)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (noised_in_fewer_steps, "has the schedule .*T': 500.* the run "),
    (of_larger_pictures, r"image_shape \[16, 16, 1\], the run \[8, 8"),
  ],
)
def test_a_classifier_of_other_pictures_or_noise_is_refused(
  change, message, runs_of_both, capsys
):
  diffusion, classifier = runs_of_both
  change(classifier)
  with pytest.raises(SystemExit) as stop:
    command(sample, f"--workdir={diffusion}", f"--classifier={classifier}")
  assert_one_error(stop, capsys, message)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config.model.num_labels=7"], "num_labels=7, but the data have 10"),
    (["--config.model.pool=max"], "pool='max' is not one of"),
    (["--config.held_out=1"], "held_out=1 must be 2 or more"),
  ],
)
def test_bad_classifier_training_is_one_line(flags, message, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    command(train, *CLASSIFIER, f"--workdir={tmp_path}/a", *flags)
  assert_one_error(stop, capsys, message)


@pytest.mark.parametrize(("config", "network"), [
  ("digits", "classifier"), ("classifier", "unet"),
])  # fmt: skip
def test_a_network_of_the_other_kind_is_refused(
  config, network, tmp_path, capsys
):
  with pytest.raises(SystemExit) as stop:
    command(
      train, f"--config=configs/{config}.py", f"--workdir={tmp_path / 'a'}",
      f"--config.model.name={network}",
    )  # fmt: skip
  assert_one_error(stop, capsys, f"model.name={network} is not a network of")


def test_the_former_command_still_trains_a_classifier(tmp_path, capsys):
  with (
    pytest.warns(DeprecationWarning, match="is now experiments.train"),
    pytest.raises(SystemExit) as stop,
  ):
    command(train_classifier, "--config.held_out=1", f"--workdir={tmp_path}/a")
  assert_one_error(stop, capsys, "held_out=1 must be 2 or more")
