"""Keys that are not of jax's usual kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import BPTT, UORO, OnlineRNN


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("method", [UORO(), BPTT(tail=UORO())])
def test_any_kind_of_key_starts_a_random_method(method, impl):
    rnn = OnlineRNN(nn.SimpleCell(3), method)
    carry = rnn.initialize_carry(jax.random.key(0, impl=impl), (4, 2))
    xs = jnp.ones((2, 4, 2))
    variables = rnn.init(jax.random.key(1), carry, xs)
    after, _ = rnn.apply(variables, carry, xs)
    for keys in (carry.influence.key, after.influence.key):
        assert len(np.unique(keys, axis=0)) == 4  # each stream draws for itself
