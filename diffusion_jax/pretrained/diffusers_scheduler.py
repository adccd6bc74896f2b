"""The settings of diffusers' schedulers, in and out.

A process is translated completely, or rejected with the name of a setting.
Nothing here imports diffusers.
"""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.pretrained.lookup import Settings, key_of, look_up, one_of

# A scheduler_config.json that lacks a key means this.
PROCESS: Settings = {
  "_class_name": "DDPMScheduler",
  "num_train_timesteps": 1000,
  "beta_schedule": "linear",
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "trained_betas": None,
  "variance_type": "fixed_small",
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": False,
  "thresholding": False,
}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# Theirs with "log" are the same variances, computed in another way. Their
# "learned" is not a logarithm, unlike ours and Ho et al.'s, so it has no
# counterpart.
VARIANCES = {
  "fixed_small": "fixed_small",
  "fixed_large": "fixed_large",
  "learned_range": "learned_range",
  "fixed_small_log": "fixed_small",
  "fixed_large_log": "fixed_large",
}
BETAS = ("beta_start", "beta_end")
# By beta_schedule: our name, and whether it has beta_start and beta_end.
SCHEDULES = {
  "linear": ("linear", True),
  "scaled_linear": ("quadratic", True),
  "squaredcos_cap_v2": ("cosine", False),
}


def process(config: Mapping[str, Any]) -> Settings:
  """The process in a scheduler_config.json.

  Args:
    config: The contents of the file.

  Returns:
    "schedule" (a name in ``schedules`` and its arguments), "target" and,
    unless the scheduler has none (DDIM), "variance".

  Raises:
    ValueError: If something is unknown or has no counterpart; names it.
  """
  c = PROCESS | dict(config)
  one_of("_class_name", c["_class_name"], SCHEDULERS)
  one_of("trained_betas", c["trained_betas"], (None,))
  one_of("rescale_betas_zero_snr", c["rescale_betas_zero_snr"], (False, True))
  one_of("thresholding", c["thresholding"], (False,))
  name, has_betas = look_up(c, "beta_schedule", SCHEDULES)
  schedule = {"name": name, "T": c["num_train_timesteps"]}
  if has_betas:
    schedule |= {key: c[key] for key in BETAS}
  if name == "linear":
    schedule["scale"] = False
  if c["rescale_betas_zero_snr"]:
    schedule["zero_terminal"] = True
  found = {
    "schedule": schedule,
    "target": look_up(c, "prediction_type", TARGETS),
  }
  if "variance_type" in config or c["_class_name"] == SCHEDULERS[0]:
    found["variance"] = look_up(c, "variance_type", VARIANCES)
  return found


def scheduler(
  schedule: Mapping[str, Any], target: str, variance: str
) -> Settings:
  """The scheduler_config.json of a process, the inverse of ``process``.

  Args:
    schedule: Name and arguments of a function of ``schedules``.
    target: What the network predicts.
    variance: Variance of p(x_s | x_t).

  Returns:
    The contents of the file.

  Raises:
    ValueError: If diffusers has no such process; names the setting.
  """
  for key, value, table in (
    ("target", target, TARGETS),
    ("variance", variance, VARIANCES),
  ):
    one_of(key, value, tuple(table.values()))
  names = [name for name, _ in SCHEDULES.values()]
  one_of("schedule.name", schedule["name"], tuple(names))
  T = schedule["T"]
  theirs = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": T,
    "beta_schedule": list(SCHEDULES)[names.index(schedule["name"])],
    "prediction_type": key_of(TARGETS, target),
    "variance_type": key_of(VARIANCES, variance),
    "clip_sample": True,
    "clip_sample_range": 1.0,
  }
  if schedule.get("zero_terminal", False):
    theirs["rescale_betas_zero_snr"] = True
  betas = {key: schedule.get(key, PROCESS[key]) for key in BETAS}
  if schedule["name"] == "linear" and schedule.get("scale", True):
    betas = {key: beta * 1000 / T for key, beta in betas.items()}
  others = schedule.keys() - {"name", "T", "scale", "zero_terminal", *BETAS}
  if others:
    raise ValueError(f"schedule.{min(others)} has no counterpart in diffusers")
  return theirs | (betas if schedule["name"] != "cosine" else {})
