"""The table: every method and every cell, and the laws that a method keeps.

A new method or cell is one more row here; no test names one where a law would do.
"""

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import pytest

from snaprl.cores import BPTT, RTRL, Frozen, GradientMethod, SnAp

N, M, B = 3, 2, 2  # units, inputs, streams: M and N differ, so that a wrong axis cannot hide


class Law(enum.Enum):
    """Laws that some methods keep and others do not; the rest hold for every row."""

    EXACT = "the gradient is that of the whole history"
    ANY_SPLIT = "any split of the segment gives the same gradient"
    ONE_STEP = "a one-step segment from a fresh state gives jax.grad's gradient"


class Pattern(enum.Enum):
    """Which entries of a Jacobian a method keeps."""

    NONE = "none"
    UNITS = "those of a unit with itself"  # S_1 of (4) for J, the blocks d_t for D
    ALL = "all"


class Method(NamedTuple):
    method: GradientMethod
    influence: Pattern  # what J_t keeps (5)
    adjoint: Pattern  # what of D_t moves lambda_t backward inside the segment (11)
    laws: set[Law]
    learns: bool = True


METHODS = {
    "snap1": Method(
        SnAp(order=1), Pattern.UNITS, Pattern.UNITS, laws={Law.ANY_SPLIT, Law.ONE_STEP}
    ),
    "rtrl": Method(RTRL(), Pattern.ALL, Pattern.ALL, laws=set(Law)),
    "bptt": Method(BPTT(), Pattern.NONE, Pattern.ALL, laws={Law.ONE_STEP}),
    "tail-snap1": Method(BPTT(tail=SnAp(order=1)), Pattern.UNITS, Pattern.ALL, laws={Law.ONE_STEP}),
    "tail-rtrl": Method(BPTT(tail=RTRL()), Pattern.ALL, Pattern.ALL, laws=set(Law)),
    "frozen": Method(Frozen(), Pattern.NONE, Pattern.ALL, laws=set(), learns=False),
}

# Exact means float64, and flax makes a carry in the parameters' type.
IN_64: dict[str, Any] = {"features": N, "param_dtype": jnp.float64}
CELLS: dict[str, nn.RNNCellBase] = {
    "simple": nn.SimpleCell(**IN_64),
    "residual": nn.SimpleCell(**IN_64, residual=True),
    "relu": nn.SimpleCell(**IN_64, activation_fn=nn.relu),
    "gru": nn.GRUCell(**IN_64),
    "gru-custom": nn.GRUCell(
        **IN_64,
        gate_fn=nn.softplus,
        activation_fn=nn.soft_sign,
        carry_init=nn.initializers.constant(0.3),
    ),
    "mgu": nn.MGUCell(**IN_64),
    "mgu-plain": nn.MGUCell(**IN_64, reset_gate=False),
    "lstm": nn.LSTMCell(**IN_64),
    "lstm-custom": nn.LSTMCell(**IN_64, gate_fn=nn.softplus, activation_fn=nn.swish),
    "optimized-lstm": nn.OptimizedLSTMCell(**IN_64),
}

# One state variable, two of them, and an entry of delta that is not a gate: these stand for the
# rest where a law is about methods rather than cells.
FEW_CELLS = ["residual", "gru", "lstm"]
QUICK = {(method, cell) for method in METHODS for cell in FEW_CELLS}
QUICK |= {("snap1", cell) for cell in CELLS}


def keeping(law: Law) -> list[str]:
    """The methods that keep `law`."""
    return [name for name, row in METHODS.items() if law in row.laws]


def pairs(methods: Iterable[str] = METHODS) -> pytest.MarkDecorator:
    """Parametrizes over `method` and `cell`: a sample in the fast suite, the product in all."""
    return pytest.mark.parametrize(
        ("method", "cell"),
        [
            pytest.param(method, cell, marks=() if (method, cell) in QUICK else pytest.mark.slow)
            for method in methods
            for cell in CELLS
        ],
    )
