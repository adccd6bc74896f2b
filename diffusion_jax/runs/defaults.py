"""Every key of a configuration, with its meaning and its default.

The keys of the section ``model`` are the fields of the network's class.
"""

from typing import Any

from ml_collections import config_dict


def run() -> dict[str, Any]:
  """The length of a run, its batches, and how often it writes."""
  return {
    "seed": 0,  # of all randomness: parameters, data order, noise
    "num_steps": 100_000,  # training steps in total
    "batch_size": 128,  # images per step, over all devices
    # Gradient accumulation: splits a batch into this many pieces, which are
    # processed one after another.
    "micro_batches": 1,
    # Training steps in one compiled program; more are faster for small
    # networks.
    "steps_per_dispatch": 1,
    # Fully sharded: each device stores only its part of the parameters,
    # averages and optimizer state, and gathers parameters to use them.
    "fsdp": False,
    # Steps between logged lines, sample grids, checkpoints.
    "every": {"log": 100, "preview": 5_000, "checkpoint": 5_000},
    "keep_checkpoints": 3,  # how many of the newest to keep
  }


def images() -> dict[str, Any]:
  """The training data and their augmentation."""
  return {
    "data": {
      # A path or a name, see diffusion_jax.data.load.
      "name": "digits",
      "split": "train",  # split of a TFDS data set
      # (n,) or (height, width) in pixels; () keeps the stored size.
      "size": (),
      # 1 converts to grey, 3 to colour; None keeps the stored channels.
      "channels": config_dict.placeholder(int),
      # Axes of an array's size: 1 for signals, 2 for images, 3 for volumes.
      "rank": 2,
      # Crop each image at random every time, to 0.8 to 1 of it; needs a size.
      "random_crop": False,
      "skip_broken": False,  # leave out images that cannot be read
      # Decode images to uint8, uint16 or float32; arrays keep their own.
      "dtype": config_dict.placeholder(str),
      # (low, high): values that become -1 and 1; for bytes they are 0 and 255.
      "range": (),
      # Values without a range become (value - mean) / std.
      "mean": config_dict.placeholder(float),
      "std": config_dict.placeholder(float),
      "data_dir": config_dict.placeholder(str),  # folder of TFDS data sets
      # Files of numbers, embeddings or images to condition on, one entry per
      # example: "angles.csv,mask=masks".
      "cond": config_dict.placeholder(str),
    },
    "flip": False,  # mirror half of the images left to right
    # Probability of each transformation of diffusion_jax.augmentation, which
    # includes mirroring; the network gets its parameters as a condition.
    "augment": 0.0,
  }


def conditions() -> dict[str, Any]:
  """What the network is conditioned on, besides classes."""
  return {
    # Fraction of labels that training hides, for classifier-free guidance.
    "label_dropout": 0.0,
    # The same for the parts of data.cond: one number for all; or one for each,
    # numbers first; or by name, ("angle=0.1", "mask=0.2").
    "cond_dropout": (),
    # The parts of data.cond, filled in from the data: (name, mean, std,
    # dropout) for numbers, (name, channels, dropout) for images.
    "vectors": (),
    "planes": (),
    # Upsample images of this size; () does not. Training downsamples images
    # to it and noises them to random steps 0..noise.
    "low_res": {"size": (), "noise": 0},
  }


def process() -> dict[str, Any]:
  """The noise schedule, and what the network predicts."""
  return {
    # A function of diffusion_jax.schedules, and its arguments; or ve, vp,
    # flow, trig, in continuous time (diffusion_jax.continuous), without T.
    "schedule": {"name": "linear", "T": 1000},
    # What the network predicts: eps, x0, mean, v, flow, jit or edm.
    "target": "eps",
    "sigma_data": 0.5,  # standard deviation of the data, for target edm
    # Variance of p(x_s | x_t): fixed_small, fixed_large, learned or
    # learned_range.
    "variance": "fixed_large",
  }


def learning() -> dict[str, Any]:
  """The loss and the optimizer."""
  return {
    # Start from the parameters of another run (its directory) and of one of
    # its averages, by default the slowest.
    "init": {
      "run": config_dict.placeholder(str),
      "ema": config_dict.placeholder(str),
    },
    "loss": {
      # simple; hybrid or vlb also train a learned variance.
      "name": "simple",
      # Weight of the noise's error in simple: none, bound, p2, min_snr,
      # truncated_snr, edm or sigmoid; loss.shift=k evaluates it at 1 / k of
      # the noise.
      "weight": "none",
      # Instead of a weight: the target whose error is minimised, such as v.
      "space": config_dict.placeholder(str),
      # Divide the loss by one that is learned with the network (EDM2).
      "uncertainty": False,
    },
    # Distribution of the training times: uniform; antithetic, spread evenly;
    # importance, by past losses; in continuous time also log_normal (of sigma)
    # and logit_normal (of t / T), with this mean and standard deviation.
    "timesteps": "uniform",
    "time_mean": config_dict.placeholder(float),
    "time_std": config_dict.placeholder(float),
    # Arguments of diffusion_jax.optimizers.optimizer.
    "optim": {
      "name": "adam",  # AdamW with a weight decay; or muon, schedule_free
      "lr": 2e-4,  # peak learning rate
      "warmup_steps": 5000,  # steps of its linear warm-up from 0
      # The step at which the decay reaches 0; None keeps the rate constant.
      "decay_steps": config_dict.placeholder(int),
      # cosine; linear; stable, linear in the last fifth; or inverse_sqrt,
      # which starts at decay_steps.
      "decay": "cosine",
      # Largest global norm of the gradient; None does not clip.
      "clip": config_dict.FieldReference(1.0),
      "b1": 0.9,
      "b2": 0.999,
      "eps": 1e-8,
      "weight_decay": 0.0,
    },
    # Averages of the parameters: rates of EMAs, with or without a warm-up; and
    # stds, relative widths of EDM2's averages, such as (0.05, 0.1). Each
    # checkpoint leaves a small copy of the latter, from which --ema=std:0.07
    # computes other widths.
    "ema": {"rates": (0.9999,), "warmup": False, "stds": ()},
  }


def objective() -> dict[str, Any]:
  """Diffusion, or a model of one to four network calls: docs/one-step.md."""
  return {
    "name": "diffusion",  # or consistency, meanflow, distillation
    # Learn from the run in init.run instead of from data alone; distillation
    # always does. The teacher has guidance of this scale.
    "teacher": False,
    "guidance": config_dict.placeholder(float),
    # distillation: sampling steps of the student, half of its teacher's.
    "steps": 1,
    # consistency: training steps in a stage; each moves the two times closer.
    "stage": 25_000,
    "huber": 0.0,  # consistency: c of the pseudo-Huber distance
    "equal": 0.75,  # meanflow: fraction of examples with s = t
    "power": 1.0,  # meanflow: power of the adaptive weight
    # meanflow: differentiate along the network's own velocity.
    "improved": False,
    # meanflow: guidance learned in training, of scale omega / (1 - kappa).
    "omega": 1.0,
    "kappa": 0.0,
  }


def preview() -> dict[str, Any]:
  """Sample grids during training."""
  return {
    "num": 64,  # images in a grid; 0 turns previews off
    "sampler": "unipc",
    "steps": 20,  # sampling steps
    # Where the steps are, see diffusion_jax.spacing; None suits the sampler.
    "spacing": config_dict.placeholder(str),
    # Compute their Frechet distance to the data, in random features.
    "frechet": False,
  }


def sampling() -> dict[str, Any]:
  """Defaults of experiments.sample."""
  return {
    "sampler": "ancestral",
    "steps": 1000,  # sampling steps
    # Where the steps are, see diffusion_jax.spacing; None suits the sampler.
    "spacing": config_dict.placeholder(str),
    # Scale of classifier-free guidance; 1 or None is off.
    "guidance": config_dict.placeholder(float),
    # With an eta, guidance is projected (APG): eta is the factor of its
    # parallel part, radius the largest norm of its update, and momentum,
    # usually below 0, the factor of the update of the step before.
    "apg": {
      "eta": config_dict.placeholder(float),
      "radius": config_dict.placeholder(float),
      "momentum": config_dict.placeholder(float),
    },
    "clip": True,  # clip x0_hat to [-1, 1]
    # Noise that the sampler edm_heun adds, see diffusion_jax.edm.heun.
    "churn": {
      "S_churn": 0.0,
      "S_min": 0.0,
      "S_max": config_dict.placeholder(float),
      "S_noise": 1.0,
    },
  }
