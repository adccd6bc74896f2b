"""Every key of a configuration, with what it means and its usual value.

Those of the section ``model`` are the fields of the network's class.
"""

from typing import Any

from ml_collections import config_dict


def run() -> dict[str, Any]:
  """How long a run is, in which steps, and what it leaves."""
  return {
    "seed": 0,  # of parameters, data order, noise: everything
    "num_steps": 100_000,
    "batch_size": 128,  # images per step, over all devices
    "micro_batches": 1,  # pieces of a batch in memory one after another
    "steps_per_dispatch": 1,  # steps in one program, for small networks
    # Each device holds its part of the parameters, averages and optimizer
    # state only, and gathers parameters while it uses them.
    "fsdp": False,
    # Steps between logged lines, sample grids, checkpoints.
    "every": {"log": 100, "preview": 5_000, "checkpoint": 5_000},
    "keep_checkpoints": 3,
  }


def images() -> dict[str, Any]:
  """What a run learns from."""
  return {
    "data": {
      "name": "digits",  # or whatever diffusion_jax.data.load takes
      "split": "train",  # of a TFDS data set
      "size": (),  # (), (n,) or (height, width); () is as stored
      "channels": config_dict.placeholder(int),  # 1 or 3 to convert
      "rank": 2,  # axes of an array's size: 1 of signals, 3 of volumes
      # Cut each time anew, at 0.8 to 1 of a picture; needs a size.
      "random_crop": False,
      "skip_broken": False,  # leave out pictures that cannot be read
      # Decode pictures to uint8, uint16 or float32; arrays have theirs.
      "dtype": config_dict.placeholder(str),
      "range": (),  # (low, high) of the values; bytes have 0 to 255
      "mean": config_dict.placeholder(float),  # of values without a range
      "std": config_dict.placeholder(float),
      "data_dir": config_dict.placeholder(str),  # of TFDS
      # What else is known of each example, to condition on: files of
      # numbers, embeddings or pictures, "angles.csv,mask=masks".
      "cond": config_dict.placeholder(str),
    },
    "flip": False,  # mirror half of the images
    # Probability of each motion of diffusion_jax.augmentation, whose mirrors
    # make flip needless; the network takes its labels.
    "augment": 0.0,
  }


def conditions() -> dict[str, Any]:
  """What its network is conditioned on, beside classes."""
  return {
    # Part of the labels that training hides, for classifier-free guidance.
    "label_dropout": 0.0,
    # As much of each part of data.cond, numbers first; or one for all; or by
    # name, ("angle=0.1", "mask=0.2").
    "cond_dropout": (),
    # These parts, (name, mean, std, dropout) of numbers, (name, channels,
    # dropout) of pictures, filled in from the data.
    "vectors": (),
    "planes": (),
    # To enlarge pictures of this size, () is not to. The network learns of
    # pictures made small and noised to random steps 0..noise.
    "low_res": {"size": (), "noise": 0},
  }


def process() -> dict[str, Any]:
  """How noise grows, and what the network predicts."""
  return {
    # A function of diffusion_jax.schedules, and its arguments; or ve, vp,
    # flow, trig of diffusion_jax.continuous, whose real time has no T.
    "schedule": {"name": "linear", "T": 1000},
    "target": "eps",  # the network predicts: eps, x0, mean, v, flow, jit, edm
    "sigma_data": 0.5,  # standard deviation of the data, for target edm
    # Of p(x_s | x_t): fixed_small, fixed_large, learned, learned_range.
    "variance": "fixed_large",
  }


def learning() -> dict[str, Any]:
  """What is minimised, and how."""
  return {
    # Starts from another run's average, by default the slowest.
    "init": {
      "run": config_dict.placeholder(str),
      "ema": config_dict.placeholder(str),
    },
    # simple, with a weight of the error: bound, p2, min_snr, truncated_snr,
    # edm, sigmoid, at a log-SNR moved by shift=k; or in a space, the target
    # whose error counts. hybrid or vlb, which learn the variance.
    "loss": {
      "name": "simple",
      "weight": "none",
      "space": config_dict.placeholder(str),
      "uncertainty": False,  # learnt with it, divides it (EDM2)
    },
    # Or antithetic; importance, by past losses; in real time also log_normal
    # (of sigma) and logit_normal (of t / T), with this mean and deviation.
    "timesteps": "uniform",
    "time_mean": config_dict.placeholder(float),
    "time_std": config_dict.placeholder(float),
    # Arguments of diffusion_jax.training.optimizer.
    "optim": {
      "name": "adam",  # also AdamW; or muon, schedule_free
      "lr": 2e-4,
      "warmup_steps": 5000,
      "decay_steps": config_dict.placeholder(int),  # to 0 at this step
      # Or linear; stable, linear in the last fifth; inverse_sqrt from
      # decay_steps on. Without decay_steps constant.
      "decay": "cosine",
      "clip": config_dict.FieldReference(1.0),  # or None
      "b1": 0.9,
      "b2": 0.999,
      "eps": 1e-8,
      "weight_decay": 0.0,
    },
    # Rates; and stds, such as (0.05, 0.1), widths of EDM2's averages: each
    # checkpoint leaves them behind, small, and others are made of these by
    # --ema=std:0.07.
    "ema": {"rates": (0.9999,), "warmup": False, "stds": ()},
  }


def objective() -> dict[str, Any]:
  """Diffusion or, in one to four network calls, docs/one-step.md."""
  return {
    "name": "diffusion",  # consistency, meanflow, distillation
    # Learn from the run of init.run, not from data; distillation always
    # does. Guided with this scale.
    "teacher": False,
    "guidance": config_dict.placeholder(float),
    "steps": 1,  # distillation: the student's, half of its teacher's
    "stage": 25_000,  # consistency: updates until neighbours are nearer
    "huber": 0.0,  # consistency: c of the pseudo-Huber distance
    "equal": 0.75,  # meanflow: part of the steps from t to t
    "power": 1.0,  # meanflow: of the adaptive weight
    "improved": False,  # meanflow: derive along the network's velocity
    # meanflow: guidance that is learnt, of scale omega / (1 - kappa).
    "omega": 1.0,
    "kappa": 0.0,
  }


def preview() -> dict[str, Any]:
  """Sample grids while training: few steps."""
  return {
    "num": 64,  # 0 is none
    "sampler": "unipc",
    "steps": 20,
    "spacing": config_dict.placeholder(str),
    # Measure their Frechet distance to the data, in random features.
    "frechet": False,
  }


def sampling() -> dict[str, Any]:
  """What experiments.sample does by default."""
  return {
    "sampler": "ancestral",
    "steps": 1000,
    "spacing": config_dict.placeholder(str),  # by default the sampler's
    "guidance": config_dict.placeholder(float),  # scale; 1 is off
    # With an eta, guidance is projected (APG), its update no longer than
    # the radius, and carried from step to step by the momentum, usually
    # below 0.
    "apg": {
      "eta": config_dict.placeholder(float),
      "radius": config_dict.placeholder(float),
      "momentum": config_dict.placeholder(float),
    },
    "clip": True,  # x0_hat to [-1, 1]
    # Noise that edm_heun adds on its way, see diffusion_jax.edm.
    "churn": {
      "S_churn": 0.0,
      "S_min": 0.0,
      "S_max": config_dict.placeholder(float),
      "S_noise": 1.0,
    },
  }
