"""Which weights a core has: patterns, pruning, rewiring, lottery tickets.

A mask is a tree of 0/1 arrays shaped like a cell's parameters; a leaf that is missing is dense.
`OnlineRNN` takes one and keeps it beside the parameters, in the collection `sparsity`. What is here
makes such trees, and makes new ones of the same shapes while training runs.

Everything that chooses weights takes `scope`, among which weights are compared, and `tied`, which
layers share one mask.
"""

from snaprl.cores.sparsity.build import gates, mask
from snaprl.cores.sparsity.choice import Scope
from snaprl.cores.sparsity.graphs import barabasi_albert, watts_strogatz
from snaprl.cores.sparsity.lottery import Ticket, lottery_round
from snaprl.cores.sparsity.patterns import Pattern, fixed_fan_in, uniform
from snaprl.cores.sparsity.pruning import (
    MaskState,
    PruningState,
    keep_masked,
    magnitude_mask,
    magnitude_pruning,
)
from snaprl.cores.sparsity.report import density
from snaprl.cores.sparsity.rewiring import Rewired, as_dense, rewire_rigl, rewire_set
from snaprl.cores.sparsity.schedules import cosine_schedule, cubic_schedule
from snaprl.cores.sparsity.state import mask_of, reset_moments, with_mask
from snaprl.cores.sparsity.structured import block, n_of_m

__all__ = [
    "MaskState",
    "Pattern",
    "PruningState",
    "Rewired",
    "Scope",
    "Ticket",
    "as_dense",
    "barabasi_albert",
    "block",
    "cosine_schedule",
    "cubic_schedule",
    "density",
    "fixed_fan_in",
    "gates",
    "keep_masked",
    "lottery_round",
    "magnitude_mask",
    "magnitude_pruning",
    "mask",
    "mask_of",
    "n_of_m",
    "reset_moments",
    "rewire_rigl",
    "rewire_set",
    "uniform",
    "watts_strogatz",
    "with_mask",
]
