"""The cores for flax's nnx: its cells, its parameters, the same methods."""

from snaprl.cores.nnx.online_rnn import OnlineRNN, Wiring

__all__ = ["OnlineRNN", "Wiring"]
