"""Which kernel computes attention, and where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import EDM2, DiT, UNet, attention

UNET = {"channels": 8, "multipliers": (1, 2), "num_blocks": 1}
NETS = {
  "unet": UNet(**UNET, attention_levels=(0,), dtype="bfloat16"),
  "dit": DiT(patch=1, width=16, depth=1, heads=2, dtype="bfloat16"),
  "edm2": EDM2(
    channels=8, multipliers=(1,), num_blocks=1, attention_levels=(0,),
    head_channels=8, dtype="bfloat16",
  ),
}  # fmt: skip


def asked(monkeypatch, net, *, side, backend="gpu"):
  """The implementations that a network asks for, by number of tokens."""
  seen = []

  def attend(q, k, v, *, implementation):
    seen.append((q.shape[1], implementation))
    return v

  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
  t = jax.ShapeDtypeStruct((2,), jnp.float32)
  jax.eval_shape(net.init, jax.random.key(0), x, t)
  return set(seen)


@pytest.mark.parametrize("name", NETS)
def test_cudnn_computes_attention_over_many_tokens_on_a_gpu(name, monkeypatch):
  net = NETS[name].clone(attention_kernel="cudnn")
  kernels = dict(asked(monkeypatch, net, side=16))
  assert kernels[256] == "cudnn"
  assert all(kernels[n] == "xla" for n in kernels if n < 128)
  assert dict(asked(monkeypatch, net, side=8))[64] == "xla"


@pytest.mark.parametrize("name", NETS)
def test_elsewhere_for_32_bits_and_by_default_xla_does(name, monkeypatch):
  cudnn = NETS[name].clone(attention_kernel="cudnn")
  exact = cudnn.clone(dtype="float32")
  for net, backend in (
    (NETS[name], "gpu"), (cudnn, "cpu"), (cudnn, "tpu"), (exact, "gpu"),
  ):  # fmt: skip
    found = asked(monkeypatch, net, side=16, backend=backend)
    assert {kernel for _, kernel in found} == {"xla"}


def test_a_network_for_cudnn_gives_the_same_numbers_on_a_cpu():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 1, 8), "bfloat16")
  np.testing.assert_array_equal(
    attention.attend(q, k, v), attention.attend(q, k, v, "cudnn")
  )


@pytest.mark.parametrize("name", NETS)
def test_an_unknown_kernel_is_refused(name):
  x, t = jnp.zeros((1, 8, 8, 1)), jnp.ones(1)
  net = NETS[name].clone(attention_kernel="flash")
  with pytest.raises(ValueError, match="attention_kernel='flash' is not one"):
    net.init(jax.random.key(0), x, t)
