"""Recurrent cores, and how gradients travel through time."""

from snaprl.cores.bptt import BPTT
from snaprl.cores.compiling import compiler_options
from snaprl.cores.feedback import FeedbackDense
from snaprl.cores.frozen import Frozen
from snaprl.cores.kronecker import KFRTRL, OKRTRL
from snaprl.cores.masks import Mask
from snaprl.cores.online_rnn import OnlineRNN
from snaprl.cores.ours import (
    ELSTMCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LRUCell,
    RTUCell,
    SparseGRUCell,
    SparseLSTMCell,
    SparseSimpleCell,
)
from snaprl.cores.rewire import rewire
from snaprl.cores.rflo import RFLO, EProp
from snaprl.cores.rtrl import RTRL
from snaprl.cores.snap import SnAp
from snaprl.cores.stack import OnlineStack, StackedCell
from snaprl.cores.types import CoreState, GradientMethod, Sparsity
from snaprl.cores.uoro import UORO

__all__ = [
    "BPTT",
    "KFRTRL",
    "OKRTRL",
    "RFLO",
    "RTRL",
    "UORO",
    "CoreState",
    "ELSTMCell",
    "EProp",
    "FeedbackDense",
    "Frozen",
    "GradientMethod",
    "IndRNNCell",
    "LRUCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "Mask",
    "OnlineRNN",
    "OnlineStack",
    "RTUCell",
    "SnAp",
    "SparseGRUCell",
    "SparseLSTMCell",
    "SparseSimpleCell",
    "Sparsity",
    "StackedCell",
    "compiler_options",
    "rewire",
]
