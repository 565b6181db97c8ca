"""Cells whose influence cannot be followed: one sentence, before anything runs."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp

B, M, N = 2, 3, 5


def carry_of(rnn):
    return rnn.initialize_carry(jax.random.key(0), (B, M))


def says(sentence):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(ValueError, match=f"(?m)^{re.escape(sentence)}$")


class Dropping(nn.GRUCell):
    """Draws random numbers."""

    @nn.compact
    def __call__(self, carry, inputs):
        return super().__call__(nn.Dropout(0.5, deterministic=False)(carry), inputs)


@pytest.mark.parametrize("method", [SnAp(order=1), BPTT()], ids=repr)
def test_a_cell_that_draws_random_numbers(method):
    with says(
        "Dropping draws random numbers while it runs, and a step that is followed online depends "
        "on parameters, the carry and its input; put dropout before the core or after it"
    ):
        carry_of(OnlineRNN(Dropping(N), method))


class Two(nn.GRUCell):
    """Gives its state out twice, in whatever `pack` puts the two."""

    pack: Callable[..., Any] = tuple

    @nn.compact
    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, self.pack((y, y))


PACKS = {"tuple": tuple, "list": list, "dict": lambda ys: {"y": ys[0]}, "NoneType": lambda ys: None}


@pytest.mark.parametrize("kind", PACKS)
def test_an_output_that_is_no_array(kind):
    pack = PACKS[kind]
    with says(
        f"Two gives out a {kind}, and its output must be one array; let it give out its new "
        "state, and take that apart afterwards"
    ):
        carry_of(OnlineRNN(Two(N, pack=pack)))


class Coupled(nn.GRUCell):
    """Streams that read each other's mean."""

    @nn.compact
    def __call__(self, carry, inputs):
        carry = nn.tanh(nn.Dense(self.features)(jnp.concatenate([carry, inputs], -1)))
        return (carry - carry.mean(0, keepdims=True),) * 2


@pytest.mark.parametrize("method", [SnAp(order=1), RTRL(), BPTT(tail=SnAp(order=1))], ids=repr)
def test_a_cell_whose_streams_read_each_other(method):
    with says(
        "Coupled lets streams read each other, and an influence is that of one stream; let a "
        "stream's new carry be a function of its own carry and inputs"
    ):
        OnlineRNN(Coupled(4), method).initialize_carry(jax.random.key(0), (B, M))
    OnlineRNN(Coupled(4), BPTT()).initialize_carry(jax.random.key(0), (B, M))


class Counting(nn.GRUCell):
    """Counts its steps beside its parameters."""

    @nn.compact
    def __call__(self, carry, inputs):
        self.variable("counts", "steps", lambda: jnp.zeros(()))
        return super().__call__(carry, inputs)


def test_a_cell_that_keeps_more_than_parameters():
    with says(
        "Counting keeps counts beside its parameters, and a step that is followed online may read "
        "parameters, the carry and its input; keep what changes in the carry, and constants as "
        "attributes"
    ):
        OnlineRNN(Counting(4)).initialize_carry(jax.random.key(0), (B, M))
