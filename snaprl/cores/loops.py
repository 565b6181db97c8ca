"""Loops over the steps of a segment."""

from collections.abc import Callable

import jax

from snaprl.cores.types import PyTree


def scan(step: Callable, carry: PyTree, inputs: PyTree, reverse: bool = False) -> tuple:
    """`lax.scan`, without the loop where there is one step only."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(step, carry, inputs, reverse=reverse)
    carry, outputs = step(carry, jax.tree.map(lambda x: x[0], inputs))
    return carry, jax.tree.map(lambda x: x[None], outputs)


def by_pieces(
    piece: Callable[[PyTree, PyTree], PyTree], carry: PyTree, inputs: PyTree, most: int
) -> PyTree:
    """The carry after all of `inputs [T, ...]`, of which `piece` gets `most` steps at a time."""
    count, rest = divmod(jax.tree.leaves(inputs)[0].shape[0], most)
    if count:
        whole = jax.tree.map(lambda x: x[: count * most].reshape(count, most, *x.shape[1:]), inputs)
        carry, _ = scan(lambda c, x: (piece(c, x), None), carry, whole)
    return piece(carry, jax.tree.map(lambda x: x[-rest:], inputs)) if rest else carry
