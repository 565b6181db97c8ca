"""How much a gradient method keeps: patterns, the influence that is lost, cosines of gradients.

It is made for looking at small cores: influences are dense, and Jacobians are jax's own.
"""

from snaprl.cores.analysis.bias import Bias, bias_gib, influence_bias
from snaprl.cores.analysis.cosine import Candidate, candidates, cosines_gib, gradient_cosines
from snaprl.cores.analysis.patterns import (
    check_exact,
    entered,
    existing,
    influence_pattern,
    is_closed,
    kept_share,
    pattern_gib,
)

__all__ = [
    "Bias",
    "Candidate",
    "bias_gib",
    "candidates",
    "check_exact",
    "cosines_gib",
    "entered",
    "existing",
    "gradient_cosines",
    "influence_bias",
    "influence_pattern",
    "is_closed",
    "kept_share",
    "pattern_gib",
]
