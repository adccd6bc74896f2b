"""Indices beyond what they index are refused where they can be seen."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import conditions, guidance, schedules
from diffusion_jax.models import backbone

THREE = conditions.Conditions(schedules.cosine(10), num_classes=3)
HIDING = conditions.Conditions(
  schedules.cosine(10), num_classes=3, label_dropout=0.1
)
NET = types.SimpleNamespace(num_classes=3)


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize(
  "use",
  [
    lambda y: guidance.log_prob(jnp.zeros((2, 3)), y),
    lambda y: guidance.log_prob_gradient(lambda x, t: x, y)(
      jnp.zeros((2, 3)), jnp.ones(2)
    ),
    lambda y: backbone.check_classes(NET, y),
    lambda y: THREE.given(y, None),
  ],
)
def test_a_class_that_is_none_is_refused(use, wrong):
  for array in (np.array, jnp.array):
    with pytest.raises(ValueError, match=f"class y={wrong} is not in 0..2"):
      use(array([0, wrong]))
    use(array([0, 2]))


def test_the_class_that_stands_for_none_is_one():
  assert HIDING.given(jnp.array([3]), None)["y"] == 3
  with pytest.raises(ValueError, match="class y=4 is not in 0..3"):
    HIDING.given(jnp.array([4]), None)


def test_what_is_traced_is_taken_as_it_is():
  jax.eval_shape(
    lambda y: guidance.log_prob(jnp.zeros((2, 3)), y), np.ones(2, int)
  )
