"""PyTorch as a worker of the benchmark.

  python -m experiments.tools.benchmark.peers

diffusers' ``UNet2DModel``, run as fast as its users can: channels-last, a fused
Adam, the average of all parameters in one call; as written ("eager") or through
torch.compile; with autocast if activations are bfloat16. It needs PyTorch and
diffusers, pip install -e '.[peers]', and imports no JAX.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

from experiments.tools.benchmark import worker
from experiments.tools.benchmark.worker import Facts, Ready, Stopwatch

# An extra: type checkers need not find them.
torch: Any = importlib.import_module("torch")
diffusers: Any = importlib.import_module("diffusers")
Tensor = Any

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Peer:
  """The network of a job, on the device, and a batch for it.

  Args:
    job: "unet" and "scheduler", the contents of diffusers' config.json and
      scheduler_config.json; "batch_size"; "dtype"; "compile"; "seed", by
      default 0.
  """

  def __init__(self, job: Facts):
    torch.manual_seed(job.get("seed", 0))
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    self.job = job
    self.net: Any = diffusers.UNet2DModel.from_config(job["unet"])
    self.net.to(DEVICE, memory_format=torch.channels_last)
    size = self.net.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    self.shape = (
      job["batch_size"], self.net.config.in_channels, height, width,
    )  # fmt: skip
    self.x = self.noise()
    self.t = torch.full((job["batch_size"],), 500, device=DEVICE)
    classes = self.net.config.num_class_embeds
    self.cond = {}
    if classes is not None:
      labels = torch.arange(job["batch_size"], device=DEVICE) % classes
      self.cond["class_labels"] = labels
    self.call = torch.compile(self.net) if job["compile"] else self.net

  def noise(self) -> Tensor:
    """A batch of standard Gaussian noise."""
    noise = torch.randn(self.shape, device=DEVICE)
    return noise.to(memory_format=torch.channels_last)

  def __call__(self, x: Tensor, t: Tensor) -> Tensor:
    """Runs the network; the result is float32."""
    dtype = getattr(torch, self.job["dtype"])
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
      return self.call(x, t, **self.cond).sample.float()

  @property
  def facts(self) -> dict[str, Any]:
    """The facts to compare with ours."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {
      "device": name,
      "devices": 1,
      "parameters": sum(p.numel() for p in self.net.parameters()),
      "dtype": self.job["dtype"],
      "images": self.job["batch_size"],
    }


def step(peer: Peer, job: Facts) -> Ready:
  """A training step: the noise of DDPM's algorithm 1, Adam, the average."""
  peer.net.train()
  average = copy.deepcopy(peer.net).requires_grad_(False)
  params, averages = list(peer.net.parameters()), list(average.parameters())
  optimizer = torch.optim.Adam(params, lr=2e-4, fused=True)
  abar = torch.linspace(1, 0, job["T"] + 1, device=DEVICE)
  watch = Stopwatch()

  def repeat():
    t = torch.randint(1, job["T"], (len(peer.x),), device=DEVICE)
    eps = torch.randn_like(peer.x)
    kept = abar[t][:, None, None, None]
    x_t = kept.sqrt() * peer.x + (1 - kept).sqrt() * eps
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.mse_loss(peer(x_t, t)[:, : eps.shape[1]], eps)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(averages, params, 1e-4)
    return loss.item()

  repeat()
  watch.lap("run")
  repeat()
  facts = {"first_step": watch.seconds, "calls": 3}
  return Ready(repeat, peer.facts | facts, _memory())


def forward(peer: Peer, job: Facts) -> Ready:
  """The network, once."""
  peer.net.eval()
  return _warm(lambda: peer(peer.x, peer.t), peer.facts | {"calls": 1})


def sample(peer: Peer, job: Facts) -> Ready:
  """Sampling from noise to images, the loop of diffusers' pipelines."""
  peer.net.eval()
  few = job["steps"] <= job["few"]
  make = diffusers.UniPCMultistepScheduler if few else diffusers.DDPMScheduler
  options = {k: v for k, v in job["scheduler"].items() if k[0] != "_"}
  if few:
    options = {k: v for k, v in options.items() if "clip" not in k}
    options.pop("variance_type")

  def walk():
    scheduler = make(**options)
    scheduler.set_timesteps(job["steps"], device=DEVICE)
    x = peer.noise()
    for t in scheduler.timesteps:
      output = peer(x, t.expand(len(x)))
      if few:
        output = output[:, : x.shape[1]]  # without what is learned of variance
      x = scheduler.step(output, t, x).prev_sample
    return x

  facts = {"calls": job["steps"], "sampler": make.__name__}
  return _warm(walk, peer.facts | facts)


MEASURES: dict[str, Callable[[Peer, Facts], Ready]] = {
  "step": step,
  "forward": forward,
  "sample": sample,
}


def _warm(call: Callable[[], Tensor], facts: dict[str, Any]) -> Ready:
  def repeat():
    with torch.inference_mode():
      call().sum().item()  # waits for the device

  repeat()
  repeat()
  return Ready(repeat, facts, _memory())


def _memory() -> Callable[[], int] | None:
  return torch.cuda.max_memory_allocated if DEVICE == "cuda" else None


if __name__ == "__main__":
  worker.serve(lambda job: MEASURES[job["measure"]](Peer(job), job))
