"""Recurrent cores, and how gradients travel through time."""

from snaprl.cores.bptt import BPTT
from snaprl.cores.frozen import Frozen
from snaprl.cores.masks import Mask
from snaprl.cores.online_rnn import OnlineRNN
from snaprl.cores.rtrl import RTRL
from snaprl.cores.snap import SnAp
from snaprl.cores.types import CoreState, GradientMethod

__all__ = ["BPTT", "RTRL", "CoreState", "Frozen", "GradientMethod", "Mask", "OnlineRNN", "SnAp"]
