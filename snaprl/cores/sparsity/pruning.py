"""Magnitude pruning: the smallest weights go, for good."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from snaprl.cores.sparsity.choice import Scope, Tied, check_fraction, choose, largest, share
from snaprl.cores.sparsity.trees import MaskTree, fitting, flat_mask, nested, plain_mask, replaced
from snaprl.cores.types import Array, Params


class MaskState(NamedTuple):
    """The state of `keep_masked`."""

    mask: Params  # bool, shaped like the parameters that it masks


class PruningState(NamedTuple):
    """The state of `magnitude_pruning`."""

    step: Array  # []  int32  updates so far
    density: Array  # []  float32  what the schedule gave last
    mask: Params  # bool, shaped like the parameters that it masks


def magnitude_mask(
    params: Params,
    mask: MaskTree,
    density: ArrayLike,
    *,
    scope: Scope = Scope.LAYER,
    tied: Tied = (),
) -> dict[str, Any]:
    """Keeps the largest of the weights that are left.

    Of E weights in a group, masked ones included, `round(density * E)` stay; where fewer are left,
    all of those. A weight that is masked does not return. `density` may be traced: a program that
    was compiled for one serves every other.

    Args:
      params: parameters, with the leaves that the mask names among others.
      mask: 0/1 leaves; parameters without one stay dense. To prune a dense core, start from
        `mask(cell, input_size, uniform(1.0))`.
      density: `[]`, from 0 to 1.
      scope: among which weights the largest are looked for.
      tied: layers with one mask for all: `gates(cell)` keeps a mask shared by the gates shared. A
        weight's magnitude is then the norm over the gates.

    Returns:
      The mask with fewer ones, bool.

    Raises:
      ValueError: the density is known and not in [0, 1], or the mask does not fit.
    """
    check_fraction("density", density)

    def select(present: Array, magnitude: Array) -> Array:
        # below every magnitude: what is masked comes last
        return largest(jnp.where(present, magnitude, -1), share(density, len(present))) & present

    return choose(select, mask, params, scope=scope, tied=tied)


def keep_masked(mask: MaskTree) -> optax.GradientTransformation:
    """Keeps masked weights at exactly 0, whatever the optimiser before it wants.

    It stands last: `optax.chain(optax.adamw(1e-3), keep_masked(mask))`. The mask lies in the state:
    `mask_of` reads it, `with_mask` puts another one in, as rewiring does.

    Args:
      mask: 0/1 leaves in a tree like the parameters': `{"cell": mask(...)}` for those of an
        `OnlineRNN`.

    Returns:
      An optax transformation whose `update` needs `params`; its state is a `MaskState`. The first
      update puts 0 where a masked weight was loaded with something else.

    Raises:
      ValueError: in `update`, the parameters are missing or the mask does not fit them.
    """

    def init(params: optax.Params) -> MaskState:
        del params
        return MaskState(plain_mask(mask))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MaskState]:
        assert isinstance(state, MaskState)
        return _hold(updates, params, state.mask), state

    return optax.GradientTransformation(init, update)


def magnitude_pruning(
    mask: MaskTree, schedule: optax.Schedule, *, scope: Scope = Scope.LAYER, tied: Tied = ()
) -> optax.GradientTransformation:
    """Prunes while it trains, and keeps what is masked at exactly 0.

    It stands last: `optax.chain(optax.adam(1e-3), magnitude_pruning(mask, schedule))`. The weights
    that an update leads to are pruned to `schedule(step)`, with step 0 for the first update; where
    the schedule did not fall, nothing is sorted.

    Args:
      mask: where to start; 0/1 leaves in a tree like the parameters': `{"cell": mask(...)}` for
        those of an `OnlineRNN`.
      schedule: `step -> density`, such as `cubic_schedule(0.1, begin=1000, end=9000, every=100)`.
      scope: as in `magnitude_mask`.
      tied: as in `magnitude_mask`.

    Returns:
      An optax transformation whose `update` needs `params`; its state is a `PruningState`, of which
      `mask_of` reads the mask.

    Raises:
      ValueError: in `update`, the parameters are missing or the mask does not fit them.
    """

    def init(params: optax.Params) -> PruningState:
        del params
        return PruningState(jnp.zeros([], jnp.int32), jnp.ones([], jnp.float32), plain_mask(mask))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, PruningState]:
        assert isinstance(state, PruningState)
        density = jnp.asarray(schedule(state.step), jnp.float32)

        def pruned() -> dict[str, Any]:
            moved = _moved(updates, params, state.mask)
            return magnitude_mask(moved, state.mask, density, scope=scope, tied=tied)

        kept = jax.lax.cond(density < state.density, pruned, lambda: plain_mask(state.mask))
        step = jnp.asarray(optax.safe_increment(state.step))
        return _hold(updates, params, kept), PruningState(step, density, kept)

    return optax.GradientTransformation(init, update)


def _pairs(updates: Any, params: Any, mask: Params) -> dict:
    """For each leaf that a mask names: its mask, its update, the parameter."""
    if params is None:
        raise ValueError("masked weights need params; call update(updates, state, params)")
    keep = flat_mask(mask)
    moves, weights = fitting(updates, keep), fitting(params, keep)
    return {path: (keep[path], moves[path], weights[path]) for path in keep}


def _moved(updates: Any, params: Any, mask: Params) -> dict[str, Any]:
    """The weights that the updates lead to."""
    return nested({path: w + u for path, (_, u, w) in _pairs(updates, params, mask).items()})


def _hold(updates: Any, params: Any, mask: Params) -> Any:
    """Updates that lead masked weights to 0."""
    held = {
        # w + (-w) is exactly 0; the parameter's type, since a narrower one would not hold w
        path: jnp.where(keep, u, -w)
        for path, (keep, u, w) in _pairs(updates, params, mask).items()
    }
    return replaced(updates, held)
