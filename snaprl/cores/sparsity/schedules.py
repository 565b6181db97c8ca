"""How dense a core is, and how much of it is rewired, as functions of the step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from snaprl.cores.sparsity.choice import check_fraction
from snaprl.cores.types import Array

Schedule = Callable[[ArrayLike], Array]  # an optax.Schedule


def cubic_schedule(
    final_density: float, *, begin: int, end: int, every: int = 1, initial_density: float = 1.0
) -> Schedule:
    """Prunes fast at first, while there is much to spare, and ever more slowly.

    With densities d instead of the paper's sparsities s = 1 - d, for t = begin, begin + every, ...

        d_t = d_f + (d_i - d_f) (1 - (t - begin) / (end - begin))^3

    Between these steps the density stays; before `begin` it is `initial_density`, and from `end`
    on `final_density`.

    Reference: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for
    model compression", 2017 (arXiv 1710.01878), equation 1.

    Args:
      final_density: d_f, the share of weights that remain.
      begin: the step from which on weights are pruned.
      end: the step at which `final_density` is reached.
      every: steps from one pruning to the next; it divides `end - begin`.
      initial_density: d_i.

    Returns:
      `step -> density []`; the step may be traced.

    Raises:
      ValueError: a density is not in [0, 1], or `begin`, `end` and `every` do not fit together.
    """
    check_fraction("final_density", final_density)
    check_fraction("initial_density", initial_density)
    if final_density > initial_density:
        raise ValueError(
            f"final_density is {final_density}, above initial_density {initial_density}; pruning "
            "only removes weights"
        )
    if not 0 <= begin < end or every < 1 or (end - begin) % every:
        raise ValueError(
            f"begin is {begin}, end is {end}, every is {every}; it must be 0 <= begin < end, and "
            "every must divide end - begin"
        )

    def schedule(step: ArrayLike) -> Array:
        since = jnp.clip(jnp.asarray(step), begin, end) - begin
        remaining = 1 - since // every * every / (end - begin)
        return final_density + (initial_density - final_density) * remaining**3

    return schedule


def cosine_schedule(initial_fraction: float = 0.3, *, end: int) -> Schedule:
    """Rewires less and less: `alpha / 2 (1 + cos(pi t / end))`, and nothing from `end` on.

    Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020
    (arXiv 1911.11134), section 3, "Update schedule".

    Args:
      initial_fraction: alpha, the share of weights that the first step would drop.
      end: the step from which on nothing is rewired; three quarters of the training in the paper.

    Returns:
      `step -> fraction []`; the step may be traced.

    Raises:
      ValueError: the fraction is not in [0, 1], or `end` is not positive.
    """
    check_fraction("initial_fraction", initial_fraction)
    if end < 1:
        raise ValueError(f"end is {end}; it must be at least 1")
    decay = optax.cosine_decay_schedule(initial_fraction, end)
    return lambda step: jnp.asarray(decay(step))
