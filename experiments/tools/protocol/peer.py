"""diffusers' own recipe for unconditional training, for a given time.

The defaults of examples/unconditional_image_generation of diffusers 0.42
(DDPMScheduler, AdamW at 1e-4, 500 steps of warm-up, a cosine decay, clipping
at 1, EMAModel with its warm-up), except for what suits a large GPU: a larger
batch, data that stay on the GPU, channels-last, bfloat16 and torch.compile.
A worker of the protocol; it reads a job in JSON on standard input:

  {"do": "train", "images": "images.npy", "seconds": 300, "out": "peer",
   "unet": {...}, "batch_size": 128, "parts": 4, "seed": 0, "dtype": "bfloat16",
   "compile": true}
  {"do": "sample", "out": "peer", "part": 4, "num": 50000, "steps": 25,
   "batch_size": 1000, "seed": 0, "dtype": "bfloat16", "compile": true}

and prints what it has done in one line of JSON. It imports no JAX.
"""

import importlib
import json
import math
import pathlib
import sys
import time
from typing import Any

import numpy as np

from experiments.tools.benchmark.peers import DEVICE, Peer

# An extra: type checkers need not find them.
torch: Any = importlib.import_module("torch")
diffusers: Any = importlib.import_module("diffusers")
training_utils: Any = importlib.import_module("diffusers.training_utils")

WARMUP = 500  # steps


def train(job: dict[str, Any], begin: float) -> dict[str, Any]:
  """Trains until ``seconds`` after ``begin``; saves the average in parts.

  A part is as long as the others; at its end the average is written.
  """
  peer = Peer(job)
  net = peer.net.train()
  images = torch.from_numpy(np.load(job["images"])).to(DEVICE)
  scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
  optimizer = torch.optim.AdamW(
    net.parameters(),
    lr=1e-4,
    betas=(0.95, 0.999),
    weight_decay=1e-6,
    eps=1e-8,
    fused=DEVICE == "cuda",
  )
  average = training_utils.EMAModel(
    net.parameters(),
    decay=0.9999,
    use_ema_warmup=True,
    inv_gamma=1.0,
    power=0.75,
    foreach=True,
  )
  step, saved, loss = 0, [], torch.zeros(())
  while (done := (time.time() - begin) / job["seconds"]) < 1:
    # The script's decay, by time where it counts steps.
    warm = min(1.0, (step + 1) / WARMUP)
    for group in optimizer.param_groups:
      group["lr"] = 1e-4 * warm * 0.5 * (1 + math.cos(math.pi * done))
    chosen = torch.randint(len(images), (job["batch_size"],), device=DEVICE)
    x0 = images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
    flipped = torch.rand(len(x0), 1, 1, 1, device=DEVICE) < 0.5
    x0 = torch.where(flipped, x0.flip(3), x0)
    x0 = x0.contiguous(memory_format=torch.channels_last)
    eps = torch.randn_like(x0)
    t = torch.randint(1000, (len(x0),), device=DEVICE)
    x_t = scheduler.add_noise(x0, eps, t)
    loss = torch.nn.functional.mse_loss(peer(x_t, t), eps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    average.step(net.parameters())
    step += 1
    if step % 20 == 0 and DEVICE == "cuda":
      torch.cuda.synchronize()  # so that the clock says what is done
    if done > (len(saved) + 1) / job["parts"]:
      saved.append(_save(job, net, average, len(saved) + 1, begin))
  if len(saved) < job["parts"]:
    saved.append(_save(job, net, average, job["parts"], begin))
  return {
    "steps": step,
    "batch": job["batch_size"],
    "loss": float(loss.detach()),
    "saved_seconds": saved,
    "parameters": peer.facts["parameters"],
    "device": peer.facts["device"],
  }


def _save(job, net, average, part: int, begin: float) -> float:
  """Writes the average in diffusers' own layout; returns when it was done."""
  average.store(net.parameters())
  average.copy_to(net.parameters())
  net.save_pretrained(pathlib.Path(job["out"], f"part{part}"))
  average.restore(net.parameters())
  return time.time() - begin


def sample(job: dict[str, Any], begin: float) -> dict[str, Any]:
  """Draws from the average of one part, by DDIM; writes an .npz.

  DDIM, because diffusers' version clips each prediction. Without clipping
  (UniPC) a network trained for minutes draws noise.
  """
  folder = pathlib.Path(job["out"], f"part{job['part']}")
  saved = diffusers.UNet2DModel.from_pretrained(folder)
  peer = Peer(job | {"unet": saved.config})
  peer.net.load_state_dict(saved.state_dict())
  peer.net.eval()
  generator = torch.Generator(DEVICE).manual_seed(job["seed"])
  parts = []
  with torch.inference_mode():
    for _ in range(-(-job["num"] // job["batch_size"])):
      scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000)
      scheduler.set_timesteps(job["steps"], device=DEVICE)
      x = torch.randn(peer.shape, generator=generator, device=DEVICE)
      x = x.to(memory_format=torch.channels_last)
      for t in scheduler.timesteps:
        output = peer(x, t.expand(len(x)))
        x = scheduler.step(output, t, x).prev_sample
      levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
      parts.append(levels.permute(0, 2, 3, 1).cpu().numpy())
  path = pathlib.Path(job["out"], f"samples{job['part']}_{job['num']}.npz")
  np.savez(path, images=np.concatenate(parts)[: job["num"]])
  return {"samples": str(path), "seconds": time.time() - begin}


def main() -> None:
  """The worker."""
  begin = time.time()
  job = json.load(sys.stdin)
  # The clock starts with the command, imports included.
  begin = job.get("begin", begin)
  done = {"train": train, "sample": sample}[job["do"]](job, begin)
  print(json.dumps(done), flush=True)  # noqa: T201


if __name__ == "__main__":
  main()
