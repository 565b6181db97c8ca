"""RFLO and e-prop: traces that look at a unit's own memory, and not at its weights.

Both replace D_t in (10) by delta_t, what a unit keeps of itself: a GRU's update gate, an LSTM's
forget gate. They differ from SnAp-1 in the diagonal of the recurrent weights, which they drop, and
on a cell without memory of its own (`SimpleCell`) they have none.

References: Murray, "Local online learning in recurrent networks with random feedback", eLife 2019;
Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons",
Nature Communications 2020.
"""

import dataclasses

import flax.linen as nn

from snaprl.cores import segment
from snaprl.cores.method import Remembering
from snaprl.cores.traces import own_block, traces
from snaprl.cores.types import Sparsity


@dataclasses.dataclass(frozen=True)
class RFLO(Remembering):
    """Random-feedback local online learning, on any unit-wise cell.

    The feedback is what the loss gives to the core's outputs: with a readout of one's own that is
    the gradient, with `snaprl.cores.feedback.FeedbackDense` it is random, as in the paper.
    """

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """See `Remembering.memory`."""
        del cell, sparsity
        return OWN

    def adjoint(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Adjoint:
        """(11), with delta_t for d_t."""
        del cell, sparsity
        return OWN.adjoint or segment.immediate_adjoint


@dataclasses.dataclass(frozen=True)
class EProp(Remembering):
    """e-prop's eligibility traces, on any unit-wise cell, without a filter of the readout.

    Its trace is the derivative of a unit's state with respect to its weights along the unit's own
    state (their eq. 14): on these cells that of RFLO. Feedback is symmetric with a plain readout,
    and random with `snaprl.cores.feedback.FeedbackDense`.
    """

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """See `Remembering.memory`."""
        return RFLO().memory(cell, sparsity)

    def adjoint(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Adjoint:
        """See `RFLO.adjoint`."""
        return RFLO().adjoint(cell, sparsity)


OWN = traces(own_block)
