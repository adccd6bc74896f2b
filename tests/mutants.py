"""Small faults that tests must catch: ``python -m tests.mutants [NAME...]``.

Each is one line changed: a sign, a root, an off-by-one, a key used twice. The
command applies them one at a time to a copy of the tree, runs the tests of that
room, and lists those that no test has noticed. Without names it tries all, a
few minutes on an idle machine. A new method brings its own faults here.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Mutant(NamedTuple):
  """A fault.

  Attributes:
    file: Where, below the root.
    right: A text that occurs there exactly once.
    wrong: What stands in its place.
    tests: The arguments of pytest that should notice.
  """

  file: str
  right: str
  wrong: str
  tests: str


def _library(file: str, right: str, wrong: str, tests: str) -> Mutant:
  return Mutant(f"diffusion_jax/{file}.py", right, wrong, tests)


MUTANTS = {
  # ------------------------------------------------------------- process
  "alpha squared": _library(
    "process",
    "return alpha * x0 + sigma * eps",
    "return alpha**2 * x0 + sigma * eps",
    "tests/test_process.py",
  ),
  "variance for a standard deviation, forward": _library(
    "process",
    "per_example(jnp.sqrt(beta(schedule, t, start)), x_s)",
    "per_example(beta(schedule, t, start), x_s)",
    "tests/test_process.py",
  ),
  "t and s exchanged in the fresh noise": _library(
    "process",
    "-jnp.expm1(schedule.at(t).log_snr - schedule.at(s).log_snr)",
    "-jnp.expm1(schedule.at(s).log_snr - schedule.at(t).log_snr)",
    "tests/test_process.py",
  ),
  "posterior coefficient without its square": _library(
    "process",
    "(at.alpha / to.alpha) * (to.sigma / at.sigma) ** 2",
    "(at.alpha / to.alpha) * (to.sigma / at.sigma)",
    "tests/test_process.py",
  ),
  "posterior variance of t": _library(
    "process",
    "return schedule.at(s).sigma ** 2 * fresh_noise(schedule, t, s)",
    "return schedule.at(t).sigma ** 2 * fresh_noise(schedule, t, s)",
    "tests/test_process.py",
  ),
  "log of the standard deviation for that of the variance": _library(
    "process",
    "return jnp.log(jnp.where(alone",
    "return 0.5 * jnp.log(jnp.where(alone",
    "tests/test_process.py",
  ),
  "shift of a table the wrong way": _library(
    "schedules",
    "log_snr = log_snr - 2 * np.log(shift)",
    "log_snr = log_snr + 2 * np.log(shift)",
    "tests/test_schedules.py",
  ),
  "cumulative product one step late": _library(
    "schedules",
    "np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])",
    "np.concatenate([[0.0, 0.0], np.cumsum(np.log1p(-betas))[:-1]])",
    "tests/test_schedules.py",
  ),
  "straight path, alpha for sigma": _library(
    "continuous",
    "return jax.nn.sigmoid(log_snr / 2), jax.nn.sigmoid(-log_snr / 2)",
    "return jax.nn.sigmoid(-log_snr / 2), jax.nn.sigmoid(log_snr / 2)",
    "tests/test_continuous.py",
  ),
  "continuous shift the wrong way": _library(
    "continuous",
    "self.log_snr(t) - fall",
    "self.log_snr(t) + fall",
    "tests/test_continuous.py",
  ),
  # ------------------------------------------------ one to four network calls
  "the nearer point learns, too": _library(
    "consistency",
    "return f_t - jax.lax.stop_gradient(f_r)",
    "return f_t - f_r",
    "tests/test_consistency.py -k dropout",
  ),
  "the network asked at t = 0": _library(
    "consistency",
    "f_r = jnp.where(per_example(r, x_r) > 0, f_r, x_r)",
    "f_r = jnp.where(per_example(r, x_r) >= 0, f_r, x_r)",
    "tests/test_consistency.py -k published",
  ),
  "neighbours farther in later stages": _library(
    "consistency",
    "u * (1 - n / q ** (stage + 1))",
    "u * (1 - n / q ** stage)",
    "tests/test_consistency.py -k map",
  ),
  "average velocity, the derivative with a plus": _library(
    "meanflow",
    "v - per_example(span, z) * dU_dt",
    "v + per_example(span, z) * dU_dt",
    "tests/test_meanflow.py",
  ),
  "average velocity, a span in the wrong time": _library(
    "meanflow",
    "span = (now - tau(s)) / rate",
    "span = (now - tau(s)) * rate",
    "tests/test_meanflow.py -k exact_average",
  ),
  "even draws of two times paired": _library(
    "meanflow",
    "s = jax.random.permutation(key_order, s)",
    "s = s + 0 * jax.random.uniform(key_order)",
    "tests/test_meanflow.py -k sorted",
  ),
  "the student's walk ends half-way": _library(
    "distillation",
    "np.stack([pairs[::2, 0], pairs[1::2, 1]], axis=1)",
    "np.stack([pairs[::2, 0], pairs[::2, 1]], axis=1)",
    "tests/test_distillation.py",
  ),
  # -------------------------------------------------- targets and the door
  "determinant with a plus": _library(
    "targets",
    "* at.alpha - at.sigma * self.p(schedule, t)",
    "* at.alpha + at.sigma * self.p(schedule, t)",
    "tests/test_process.py",
  ),
  "v with the wrong sign": _library(
    "targets",
    "p=lambda schedule, t: -schedule.at(t).sigma",
    "p=lambda schedule, t: schedule.at(t).sigma",
    "tests/test_process.py -k papers",
  ),
  "ratio of errors without its square": _library(
    "targets",
    "return (a.det(schedule, t) / b.det(schedule, t)) ** 2",
    "return a.det(schedule, t) / b.det(schedule, t)",
    "tests/test_losses.py tests/test_process.py",
  ),
  "a network's mean is clipped": _library(
    "prediction",
    "mean_x0=p.mean_x0 if p.target.is_mean else x0_hat",
    "mean_x0=x0_hat",
    "tests/test_process.py tests/test_pictures.py",
  ),
  "noise of the unclipped prediction": _library(
    "prediction",
    "      eps_hat=eps_from_x0(schedule, x_t, t, x0_hat),",
    "      eps_hat=p.eps_hat,",
    "tests/test_process.py tests/test_pictures.py",
  ),
  "learned range from 0": _library(
    "prediction",
    "fraction = (raw + 1) / 2",
    "fraction = raw",
    "tests/test_process.py",
  ),
  "large variance on the last step": _library(
    "prediction",
    "return jnp.where(last, small, _added(schedule, x_t, t, s))",
    "return _added(schedule, x_t, t, s)",
    "tests/test_process.py",
  ),
  "thresholds below 1": _library(
    "prediction",
    "c = jnp.maximum(c, 1)",
    "c = jnp.maximum(c, 0)",
    "tests/test_process.py tests/test_guidance.py",
  ),
  # ------------------------------------------------------------- samplers
  "noise on the last step": _library(
    "samplers",
    "std = jnp.where(per_example(s, x_t) > 0, jnp.exp(0.5 * p.log_var), 0.0)",
    "std = jnp.exp(0.5 * p.log_var)",
    "tests/test_samplers.py",
  ),
  "variance for a standard deviation, backward": _library(
    "samplers",
    "jnp.exp(0.5 * p.log_var), 0.0)",
    "jnp.exp(p.log_var), 0.0)",
    "tests/test_samplers.py",
  ),
  "eta without its square": _library(
    "samplers",
    "per_example(eta**2 * posterior_var(",
    "per_example(eta * posterior_var(",
    "tests/test_samplers.py",
  ),
  "DDIM keeps too much old noise": _library(
    "samplers",
    "(1 - eta**2 + eta**2 * old_noise)",
    "(1 - eta**2 * old_noise)",
    "tests/test_samplers.py",
  ),
  "the same noise at every step": _library(
    "samplers",
    "jax.random.fold_in(jax.random.fold_in(key, image), s), shape",
    "jax.random.fold_in(key, image), shape",
    "tests/test_samplers.py",
  ),
  "every batch has the first batch's noise": _library(
    "samplers",
    "images = first + jnp.arange(shape[0])",
    "images = jnp.arange(shape[0])",
    "tests/test_samplers.py",
  ),
  "steps drawn from 0": _library(
    "timesteps",
    "jax.random.randint(key, (batch,), 1, T + 1)",
    "jax.random.randint(key, (batch,), 0, T)",
    "tests/test_timesteps.py",
  ),
  "antithetic steps from 0": _library(
    "timesteps",
    "jnp.minimum((u * T).astype(jnp.int32), T - 1) + 1",
    "jnp.minimum((u * T).astype(jnp.int32), T - 1)",
    "tests/test_timesteps.py",
  ),
  "trailing spacing ends too early": _library(
    "spacing",
    "T - T / num * np.arange(num)",
    "T - T / num * (np.arange(num) + 0.5)",
    "tests/test_spacing.py",
  ),
  "Karras spacing without its root": _library(
    "spacing",
    "table = _ratios(schedule)[1:] ** (1 / rho)",
    "table = _ratios(schedule)[1:] ** (2 / rho)",
    "tests/test_spacing.py",
  ),
  # -------------------------------------------------------------- solvers
  "midpoint without its half": _library(
    "polynomials",
    "slope = h / (2 * (nodes[0] - nodes[1]))",
    "slope = h / (nodes[0] - nodes[1])",
    "tests/test_solvers.py",
  ),
  "eta left out of the drift": _library(
    "polynomials",
    "gain = -to.alpha * jnp.expm1(-(1 + eta) * h)",
    "gain = -to.alpha * jnp.expm1(-h)",
    "tests/test_solvers.py",
  ),
  "predictor without its corrector": _library(
    "solvers",
    "return jnp.where(history.filled > 0, x, x_t)",
    "return x_t",
    "tests/test_solvers.py",
  ),
  "half the noise of an SDE step": _library(
    "solvers",
    "jnp.sqrt(-jnp.expm1(-2 * eta * h))",
    "jnp.sqrt(-jnp.expm1(-eta * h))",
    "tests/test_solvers.py",
  ),
  "Heun looks ahead from where it stood": _library(
    "solvers",
    "there = predict(x_s, at)",
    "there = predict(x_t, at)",
    "tests/test_solvers.py",
  ),
  "encoding walks down": _library(
    "solvers",
    "jax.lax.scan(body, x0, jnp.asarray(pairs)[::-1, ::-1])[0]",
    "jax.lax.scan(body, x0, jnp.asarray(pairs)[:, ::-1])[0]",
    "tests/test_solvers.py",
  ),
  # ------------------------------------------------- guidance and editing
  "guidance from the strong prediction": _library(
    "guidance",
    "guided = output + scale * (strong.output - output)",
    "guided = strong.output + scale * (strong.output - output)",
    "tests/test_guidance.py",
  ),
  "classifier's push by the variance": _library(
    "classifier_guidance",
    "per_example(scale, x_t) * sigma * gradient(x_t, t)",
    "per_example(scale, x_t) * sigma**2 * gradient(x_t, t)",
    "tests/test_guidance.py",
  ),
  "classifier's push by the standard deviation": _library(
    "classifier_guidance",
    "per_example(scale, x_t) * jnp.exp(p.log_var)",
    "per_example(scale, x_t) * jnp.exp(0.5 * p.log_var)",
    "tests/test_guidance.py",
  ),
  "gradient of a mean over the batch": _library(
    "classifier_guidance",
    "log_prob(classify(x_t, t), y).sum())",
    "log_prob(classify(x_t, t), y).mean())",
    "tests/test_guidance.py",
  ),
  "an interval of guidance that holds everywhere": _library(
    "guidance",
    "(low <= t) & (t <= high)",
    "(low <= t) | (t <= high)",
    "tests/test_guidance.py",
  ),
  "known pixels of another time": _library(
    "editing",
    "jnp.broadcast_to(s, len(known)), noise)",
    "jnp.broadcast_to(t, len(known)), noise)",
    "tests/test_editing.py",
  ),
  "inpainting from noise of no scale": _library(
    "editing",
    "samplers.prior(schedule, key_start, pairs[0, 0], images, shape)",
    "samplers.noise(key_start, pairs[0, 0], images, shape)",
    "tests/test_editing.py",
  ),
  "a straight line for the great circle": _library(
    "editing",
    "return w * jnp.sinc(w * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)",
    "return w",
    "tests/test_editing.py",
  ),
  "the score moves x_0 by sigma": _library(
    "restoration",
    "x0_hat = x0_hat + sigma**2 / alpha * push",
    "x0_hat = x0_hat + sigma / alpha * push",
    "tests/test_restoration.py",
  ),
  "PiGDM's variance of x_t": _library(
    "restoration",
    "return data_var * sigma**2 / (data_var * alpha**2 + sigma**2) * u",
    "return sigma**2 / (data_var * alpha**2 + sigma**2) * u",
    "tests/test_restoration.py",
  ),
  "DPS by the norm of a batch": _library(
    "restoration",
    "square = squares.sum(axis=tuple(range(1, y.ndim)))",
    "square = squares.sum()",
    "tests/test_restoration.py -k published",
  ),
  "a part that is hidden with another": _library(
    "parts",
    "jax.random.fold_in(key, k), part.dropout, (len(row),)",
    "key, part.dropout, (len(row),)",
    "tests/test_conditions.py",
  ),
  # ---------------------------------------------------- losses and bounds
  "the bound teaches the mean": _library(
    "losses",
    "frozen = dataclasses.replace(jax.lax.stop_gradient(p), raw=p.raw)",
    "frozen = p",
    "tests/test_losses.py",
  ),
  "one term for the whole bound": _library(
    "losses",
    "return schedule.T * loss if scaled else loss",
    "return loss",
    "tests/test_losses.py",
  ),
  "a weight the wrong way round": _library(
    "weights",
    "targets.error_ratio(targets.eps, target, schedule, t)",
    "targets.error_ratio(target, targets.eps, schedule, t)",
    "tests/test_losses.py",
  ),
  "max for min-SNR": _library(
    "weights",
    "jnp.minimum(gamma / process.snr(schedule, t), 1)",
    "jnp.maximum(gamma / process.snr(schedule, t), 1)",
    "tests/test_losses.py",
  ),
  "nats for bits": _library(
    "bound",
    "range(1, nats.ndim))) / LN2",
    "range(1, nats.ndim)))",
    "tests/test_bound.py",
  ),
  "variance of the prior without its 2": _library(
    "bound",
    "gaussian_kl(alpha * x0, 2 * jnp.log(sigma), 0.0, log_var)",
    "gaussian_kl(alpha * x0, jnp.log(sigma), 0.0, log_var)",
    "tests/test_bound.py",
  ),
  "a decoder's bin of twice the width": _library(
    "bound",
    "mass_below(half - away)",
    "mass_below(2 * half - away)",
    "tests/test_bound.py",
  ),
  "mean of the bound's terms": _library(
    "likelihood",
    "prior + vb.sum(axis=1)",
    "prior + vb.mean(axis=1)",
    "tests/test_likelihood.py",
  ),
  "divergence with the wrong sign": _library(
    "likelihood",
    "stretch += 0.5 * h * (div + div_ahead)",
    "stretch -= 0.5 * h * (div + div_ahead)",
    "tests/test_likelihood.py",
  ),
  "importance weights upside down": _library(
    "importance",
    "return index + 1, 1 / (len(p) * p[index])",
    "return index + 1, len(p) * p[index]",
    "tests/test_importance.py",
  ),
  # ------------------------------------------------------------- training
  "micro-batches summed": _library(
    "training",
    "return jax.tree.map(lambda g: g / count, total), loss",
    "return total, loss",
    "tests/test_training.py",
  ),
  "average of the parameters before the step": _library(
    "training",
    "average, params, state.step, warmup=ema_warmup",
    "average, state.params, state.step, warmup=ema_warmup",
    "tests/test_training.py",
  ),
  "the same dropout at every step": _library(
    "training",
    "jax.random.split(jax.random.fold_in(key, state.step), 3)[2]",
    "jax.random.split(key, 3)[2]",
    "tests/test_training.py -k dropout",
  ),
  "the same noise at every training step": _library(
    "objectives",
    "jax.random.split(jax.random.fold_in(key, state.step), 3)",
    "jax.random.split(key, 3)",
    "tests/test_training.py",
  ),
  "warm-up one step early": _library(
    "optimizers",
    "jnp.minimum(step / warmup_steps, 1) if",
    "jnp.minimum((step + 1) / warmup_steps, 1) if",
    "tests/test_training.py tests/test_optimizers.py",
  ),
  "average that keeps what it should forget": _library(
    "state",
    "e + (1 - now) * (p - e)",
    "e + now * (p - e)",
    "tests/test_training.py",
  ),
  "small gradients made large": _library(
    "clipping",
    "scale = jnp.minimum(1, most / global_norm(updates))",
    "scale = most / global_norm(updates)",
    "tests/test_training.py",
  ),
  "a batch that does not fit the devices": _library(
    "parallel",
    "if batch_size < 1 or batch_size % unit:",
    "if batch_size < 1 or batch_size % mesh.size:",
    "tests/test_training.py -k cut",
  ),
  "dropped labels become the last class": _library(
    "conditions",
    'key_labels, cond["y"], self.label_dropout, self.num_classes or 0',
    'key_labels, cond["y"], self.label_dropout, (self.num_classes or 1) - 1',
    "tests/test_guidance.py tests/test_upsampling.py",
  ),
  # ------------------------------------------------ EDM2, augmentation, APG
  "a sum that loses magnitude": _library(
    "models/edm2",
    "return ((1 - t) * a + t * b) / math.hypot(1 - t, t)",
    "return (1 - t) * a + t * b",
    "tests/test_edm2.py",
  ),
  "a weight that updates lengthen": _library(
    "models/edm2",
    "return unit(weight + step) - weight",
    "return step",
    "tests/test_edm2.py",
  ),
  "a loss that its uncertainty enlarges": _library(
    "losses",
    "return loss * jnp.exp(-u) + u",
    "return loss * jnp.exp(u) + u",
    "tests/test_edm2.py",
  ),
  "a turn the wrong way": _library(
    "augmentation",
    "jnp.array([[cos, -sin], [sin, cos]])",
    "jnp.array([[cos, sin], [-sin, cos]])",
    "tests/test_augmentation.py",
  ),
  "a shift that its label does not know": _library(
    "augmentation",
    "m.shift_x, m.shift_y,",
    "m.shift_x, m.shift_x,",
    "tests/test_augmentation.py",
  ),
  "momentum that is forgotten": _library(
    "apg",
    "return x_s, x0_hat, (seen[0], memory)",
    "return x_s, x0_hat, (carried, memory)",
    "tests/test_guidance.py -k momentum",
  ),
  # ------------------------------------------------------- networks, data
  "norm that adds its mean": _library(
    "models/layers",
    "b = bias.reshape(1, *each) - mean[:, :, None] * a",
    "b = bias.reshape(1, *each) + mean[:, :, None] * a",
    "tests/test_unet.py -k norm",
  ),
  "frequencies of the other embedding": _library(
    "models/layers",
    'span = half - 1 if order == "sin_cos" else half',
    "span = half",
    "tests/test_unet.py -k sinusoid",
  ),
  "steps counted from 1": _library(
    "models/unet",
    "self._time((t - self.time_origin) * self.time_scale)",
    "self._time(t * self.time_scale)",
    "tests/test_pretrained.py",
  ),
  "scale without its 1": _library(
    "models/layers",
    "h = self.norm()(h) * (1 + scale) + shift",
    "h = self.norm()(h) * scale + shift",
    "tests/test_pretrained.py",
  ),
  "every epoch in the same order": _library(
    "data/pipeline",
    "np.random.SeedSequence([self._seed, epoch])",
    "np.random.SeedSequence([self._seed])",
    "tests/test_data.py",
  ),
  "processes that read the same pictures": _library(
    "data/pipeline",
    "start = step * batch_size + process_index * part",
    "start = step * batch_size",
    "tests/test_data.py",
  ),
  "pictures mirrored upside down": _library(
    "data/pipeline",
    "images[mirrored] = images[mirrored][..., ::-1, :]",
    "images[mirrored] = images[mirrored][:, ::-1]",
    "tests/test_data.py",
  ),
  "white at 256": _library(
    "data/pictures",
    "np.rint(values / 257)",
    "np.rint(values / 256)",
    "tests/test_data.py",
  ),
  "16 bits that lose their last": _library(
    "data/values",
    "v = np.floor(v) if floor else np.rint(v)",
    "v = np.floor(v)",
    "tests/test_values.py",
  ),
  "parts that are written again": _library(
    "data/cache",
    "if not (marker.exists() or _is_whole(out)):",
    "if not _is_whole(out):",
    "tests/test_cache.py",
  ),
  "bins of bytes for every level": _library(
    "bound",
    "half = 1 / (levels - 1)",
    "half = 1 / 255",
    "tests/test_values.py",
  ),
  "bytes that do not round-trip": _library(
    "images",
    "((x + 1) * 127.5)",
    "((x + 1) * 128)",
    "tests/test_images.py",
  ),
  "members of a .zip read at once": _library(
    "data/files",
    "      with lock:\n        return io.BytesIO(archive.read(info))",
    "      return io.BytesIO(archive.read(info))",
    "tests/test_data.py -k threads",  # noticed by Python 3.12 and 3.13
  ),
  # --------------------------------------------------------- transformers
  "rows for columns": _library(
    "models/transformer",
    "in reversed(angles(grid, dim // 2))",
    "in angles(grid, dim // 2)",
    "tests/test_dit.py -k published",
  ),
  "all that is left of the channels to the last axis": _library(
    "models/transformer",
    "[share + left, *(share for _ in grid[1:])]",
    "[*(share for _ in grid[1:]), share + left]",
    "tests/test_rank.py -k channels",
  ),
  "the first slice of a volume": _library(
    "images",
    "x[:, x.shape[1] // 2]",
    "x[:, 0]",
    "tests/test_rank.py -k slice",
  ),
  "a turn that is no rotation": _library(
    "models/transformer",
    "b * cos + a * sin",
    "b * cos - a * sin",
    "tests/test_dit.py -k turned",
  ),
  "one mask of dropout for all blocks": _library(
    "models/transformer",
    '"dropout": True}',
    '"dropout": False}',
    "tests/test_dit.py -k drops",
  ),
  "scale without its one": _library(
    "models/transformer",
    "return x * (1 + scale) + shift",
    "return x * scale + shift",
    "tests/test_dit.py -k published",
  ),
  "tokens of the class kept": _library(
    "models/dit",
    "self.depth, ahead)[:, ahead:]",
    "self.depth, ahead)[:, :-ahead]",
    "tests/test_dit.py -k published",
  ),
  "dropout in the last quarter": _library(
    "models/dit",
    "(block < 3 * quarter)",
    "(block < 4 * quarter)",
    "tests/test_dit.py -k middle",
  ),
  # -------------------------------------------------------------- metrics
  "one root of the Frechet distance": _library(
    "metrics/frechet",
    "np.trace(a.cov) + np.trace(b.cov) - 2 * trace_root",
    "np.trace(a.cov) + np.trace(b.cov) - trace_root",
    "tests/test_metrics.py",
  ),
  "covariance by n": _library(
    "metrics/moments",
    "self.scatter / (self.n - 1)",
    "self.scatter / self.n",
    "tests/test_metrics.py",
  ),
  "moments merged without their gap": _library(
    "metrics/moments",
    "a.scatter + b.scatter + np.outer(gap, gap) * (a.n * b.n / n)",
    "a.scatter + b.scatter",
    "tests/test_metrics.py",
  ),
  "a kernel distance with its bias": _library(
    "metrics/kernel",
    "return (k.sum() - np.trace(k)) / (len(z) * (len(z) - 1))",
    "return k.mean()",
    "tests/test_metrics.py",
  ),
  "the neighbour before": _library(
    "metrics/manifold",
    "k, axis=1)[:, k], x",
    "k, axis=1)[:, k - 1], x",
    "tests/test_metrics.py",
  ),
  # ------------------------------------------------------------- commands
  "checksums not compared": _library(
    "checksums",
    "if written[name] != _checksum(folder / name):",
    "if not _checksum(folder / name):",
    "tests/test_resume.py -k checksums",
  ),
  "other data accepted": _library(
    "runs/training/continuing",
    'same_data = old_data.get("fingerprint") == data["fingerprint"]',
    "same_data = True",
    "tests/test_resume.py -k fingerprint",
  ),
  "lock not taken": _library(
    "runs/directory",
    "  with locked(workdir):",
    "  with contextlib.nullcontext():",
    "tests/test_resume.py -k lock",
  ),
  "stray words accepted": Mutant(
    "experiments/cli/arguments.py",
    "if len(rest) > 1:",
    "if len(rest) > 9:",
    "tests/test_malformed.py -k flag",
  ),
  "stages of a cascade share their noise": _library(
    "runs/planning",
    "return jax.random.fold_in(jax.random.fold_in(root, STAGES), stage)",
    "return root",
    "tests/test_upsampling.py -k share_no",
  ),
}


def survives(mutant: Mutant, tree: pathlib.Path) -> bool:
  """Whether the tests pass in a copy of the tree that has the fault."""
  path = tree / mutant.file
  text = path.read_text()
  if text.count(mutant.right) != 1:
    raise ValueError(
      f"{mutant.file} has {mutant.right!r} {text.count(mutant.right)} times, "
      "not once: update tests/mutants.py"
    )
  path.write_text(text.replace(mutant.right, mutant.wrong))
  try:
    done = subprocess.run(
      [
        sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-m", "not slow",
        "-p", "no:cacheprovider", *mutant.tests.split(),
      ],
      cwd=tree,
      env={**os.environ, "PYTHONPATH": str(tree)},
      capture_output=True,
      timeout=900,
      check=False,
    )  # fmt: skip
  finally:
    path.write_text(text)
  if done.returncode not in (0, 1):  # 1 is a test that failed
    raise RuntimeError(done.stdout.decode()[-2000:])
  return done.returncode == 0


def main(names: list[str]) -> None:
  """Tries the faults of these names, or all."""
  unknown = sorted(set(names) - MUTANTS.keys())
  if unknown:
    raise SystemExit(f"no fault {unknown[0]!r}; there are {', '.join(MUTANTS)}")
  left = []
  with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder, "tree")
    shutil.copytree(
      ROOT, tree, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__")
    )
    for name in names or MUTANTS:
      begin = time.perf_counter()
      lives = survives(MUTANTS[name], tree)
      left += [name] if lives else []
      word = "SURVIVES" if lives else "caught"
      print(f"{word}  {name} ({time.perf_counter() - begin:.0f} s)", flush=True)  # noqa: T201
  if left:
    raise SystemExit(f"no test notices: {', '.join(left)}")


if __name__ == "__main__":
  main(sys.argv[1:])
