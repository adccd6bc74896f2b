"""Networks of a few numbers: what is not about networks compiles at once.

With it the commands run as they are, from their flags to their checkpoints.
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.runs import networks as of_runs

MODEL, CLASSIFIER = of_runs.model, of_runs.classifier


class FewNumbers(nn.Module):
  """a x_t + b + what it is told, with numbers of each pixel's own.

  It has dropout, so that what a step learns depends on that key as well.
  """

  num_classes: int | None = None
  noisy_low_res: bool = False
  outputs: int = 1

  @nn.compact
  def __call__(self, x_t, t, cond=None, *, train=False):
    cond, init = cond or {}, nn.initializers.constant
    assert ("y" in cond) == (self.num_classes is not None)
    assert ("low_res_t" in cond) == self.noisy_low_res
    x_t = jnp.concatenate([x_t] * self.outputs, axis=-1)
    shape = (1, *x_t.shape[1:])
    seen = nn.Dropout(0.1)(x_t, deterministic=not train)
    out = self.param("a", init(0.1), shape) * seen
    out += self.param("b", init(0.0), shape)
    if self.num_classes is not None:
      of_class = nn.initializers.normal(0.1)
      size = (self.num_classes, *shape[1:])
      out += self.param("y", of_class, size)[cond["y"]]
    if "vector" in cond:
      size = (cond["vector"].shape[-1], *shape[1:])
      of_vector = self.param("vector", nn.initializers.normal(0.1), size)
      out += jnp.tensordot(cond["vector"], of_vector, 1)
    if "low_res" in cond:
      large = jax.image.resize(cond["low_res"], x_t.shape, "nearest")
      out -= self.param("low_res", init(0.5), shape) * large
    return out


class FewLabels(nn.Module):
  """Logits that are linear in x_t."""

  num_labels: int

  @nn.compact
  def __call__(self, x_t, t, cond=None, *, train=False):
    normal = nn.initializers.normal(0.1)
    shape = (*x_t.shape[1:], self.num_labels)
    return jnp.tensordot(x_t, self.param("w", normal, shape), 3)


def model(config, image_shape, num_classes):
  """What networks.model makes of a configuration, with this network."""
  net = MODEL(config, image_shape, num_classes)
  return FewNumbers(
    net.num_classes, net.noisy_low_res, net.out_channels // image_shape[-1]
  )


def classifier(config, image_shape, num_classes):
  """What networks.classifier makes of a configuration, with this network."""
  return FewLabels(CLASSIFIER(config, image_shape, num_classes).num_labels)


@contextlib.contextmanager
def networks():
  """Has the commands make these networks."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(of_runs, "model", model)
    patch.setattr(of_runs, "classifier", classifier)
    yield
