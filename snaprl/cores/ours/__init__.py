"""Recurrent cells of ours, beside flax's: flax modules that `OnlineRNN` and `nn.RNN` run."""

from snaprl.cores.ours.elstm import ELSTMCell
from snaprl.cores.ours.indrnn import IndRNNCell
from snaprl.cores.ours.normalised import LayerNormGRUCell, LayerNormLSTMCell
from snaprl.cores.ours.rotation import LRUCell, RTUCell
from snaprl.cores.ours.sparse import SparseGRUCell, SparseLSTMCell, SparseSimpleCell

__all__ = [
    "ELSTMCell",
    "IndRNNCell",
    "LRUCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "RTUCell",
    "SparseGRUCell",
    "SparseLSTMCell",
    "SparseSimpleCell",
]
