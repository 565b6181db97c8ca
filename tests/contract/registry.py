"""The table: every method and every cell, and the laws that a method keeps.

A new method or cell is one more row here; no test names one where a law would do.
"""

import enum
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import pytest

from snaprl.cores import (
    BPTT,
    KFRTRL,
    OKRTRL,
    RFLO,
    RTRL,
    UORO,
    ELSTMCell,
    EProp,
    Frozen,
    GradientMethod,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LRUCell,
    RTUCell,
    SnAp,
)

N, M, B = 3, 2, 2  # units, inputs, streams: M and N differ, so that a wrong axis cannot hide


class Law(enum.Enum):
    """Laws that some methods keep and others do not; the rest hold for every row."""

    EXACT = "the gradient is that of the whole history"
    ANY_SPLIT = "any split of the segment gives the same gradient"
    ONE_STEP = "a one-step segment from a fresh state gives jax.grad's gradient"


class Pattern(enum.Enum):
    """Which entries of a Jacobian a method keeps."""

    NONE = "none"
    NOW = "those of this step"  # S_1 of (4), and nothing of D
    UNITS = "those of a unit with itself"  # S_1 of (4) for J, the blocks d_t for D
    OWN = "those of a unit with itself, its weights left out"  # delta_t for D
    TWO = "those within two steps"  # S_2 of (4) for J, D_t[S_i, S_i] for every weight into i
    THREE = "those within three steps"
    ALL = "all"

    @property
    def order(self) -> int | None:
        """n of (4); None follows the pattern until it closes."""
        return {
            Pattern.NOW: 1,
            Pattern.OWN: 1,
            Pattern.UNITS: 1,
            Pattern.TWO: 2,
            Pattern.THREE: 3,
        }.get(self)


class Method(NamedTuple):
    method: GradientMethod
    influence: Pattern  # what J_t keeps (5)
    adjoint: Pattern  # what of D_t moves lambda_t backward inside the segment (11)
    laws: set[Law]
    learns: bool = True
    drawn: bool = False  # an estimate drawn at random: the equations hold in the mean only


def estimate(method: GradientMethod) -> Method:
    laws = {Law.ANY_SPLIT, Law.ONE_STEP}
    return Method(method, Pattern.ALL, Pattern.NOW, laws, drawn=True)


METHODS = {
    "snap1": Method(
        SnAp(order=1), Pattern.UNITS, Pattern.UNITS, laws={Law.ANY_SPLIT, Law.ONE_STEP}
    ),
    "snap0": Method(SnAp(order=0), Pattern.NONE, Pattern.NOW, laws={Law.ANY_SPLIT, Law.ONE_STEP}),
    "snap2": Method(SnAp(order=2), Pattern.TWO, Pattern.TWO, laws={Law.ANY_SPLIT, Law.ONE_STEP}),
    "snap3": Method(
        SnAp(order=3), Pattern.THREE, Pattern.THREE, laws={Law.ANY_SPLIT, Law.ONE_STEP}
    ),
    "rtrl": Method(RTRL(), Pattern.ALL, Pattern.ALL, laws=set(Law)),
    "bptt": Method(BPTT(), Pattern.NONE, Pattern.ALL, laws={Law.ONE_STEP}),
    "tail-snap1": Method(BPTT(tail=SnAp(order=1)), Pattern.UNITS, Pattern.ALL, laws={Law.ONE_STEP}),
    "tail-snap2": Method(BPTT(tail=SnAp(order=2)), Pattern.TWO, Pattern.ALL, laws={Law.ONE_STEP}),
    "tail-rtrl": Method(BPTT(tail=RTRL()), Pattern.ALL, Pattern.ALL, laws=set(Law)),
    "rflo": Method(RFLO(), Pattern.OWN, Pattern.OWN, laws={Law.ANY_SPLIT, Law.ONE_STEP}),
    "eprop": Method(EProp(), Pattern.OWN, Pattern.OWN, laws={Law.ANY_SPLIT, Law.ONE_STEP}),
    "uoro": estimate(UORO()),
    "kf-rtrl": estimate(KFRTRL()),
    "ok-rtrl": estimate(OKRTRL(rank=2)),
    "tail-rflo": Method(BPTT(tail=RFLO()), Pattern.OWN, Pattern.ALL, laws={Law.ONE_STEP}),
    "tail-uoro": Method(
        BPTT(tail=UORO()), Pattern.ALL, Pattern.ALL, laws={Law.ONE_STEP}, drawn=True
    ),
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
    "indrnn": IndRNNCell(**IN_64),
    "elstm": ELSTMCell(**IN_64),
    "elstm-open": ELSTMCell(**IN_64, output_gate=False),
    "lru": LRUCell(**IN_64),
    "rtu": RTUCell(**IN_64, activation_fn=nn.tanh),
    "rtu-nonlinear": RTUCell(**IN_64, nonlinear=True, activation_fn=nn.tanh),
    # what the statistics leave out is tested apart; three units easily have a variance of 0
    "layer-norm-gru": LayerNormGRUCell(**IN_64, constant_statistics=True, epsilon=0.1),
    "layer-norm-lstm": LayerNormLSTMCell(**IN_64, constant_statistics=True, epsilon=0.1),
}
# Cells without recurrent weights from unit to unit.
DIAGONAL = ["indrnn", "elstm", "elstm-open", "lru", "rtu", "rtu-nonlinear"]
# The outputs as a function of the state `[U N]`, where they are not its last N entries.
READOUTS: dict[str, Callable] = {
    "lru": lambda h: h,
    "rtu": jnp.tanh,
    "rtu-nonlinear": lambda h: h,
}

# One state variable, two of them, an entry of delta that is not a gate, and parameters that a unit
# keeps for itself: these stand for the rest where a law is about methods rather than cells. The
# fast suite pairs every method with two of them; all pairs together are the slow one.
FEW_CELLS = ["gru", "residual", "lstm", "lru"]
QUICK = {(method, "gru") for method in METHODS}
QUICK |= {(method, FEW_CELLS[1 + k % 3]) for k, method in enumerate(METHODS)}
QUICK |= {("snap1", cell) for cell in CELLS}


DETERMINED = [name for name, row in METHODS.items() if not row.drawn]


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
