"""What SnAp leaves out of the exact influence, step by step.

    J_t = I_t + D_t J_tm1                                                       (2)
    J^(n)_t = S_n * (I_t + D_t J^(n)_tm1)                                       (5)

Two things are lost. What stands outside the pattern is not kept: the share of J_t inside it tells.
And what would come back into the pattern from outside it is missing: J^(n)_t and S_n * J_t differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from snaprl.cores import general
from snaprl.cores.analysis.patterns import check_exact, existing, influence_pattern
from snaprl.cores.masks import apply_mask
from snaprl.cores.resets import where_reset
from snaprl.cores.segment import influence_dtype
from snaprl.cores.types import Array, Params


class Bias(NamedTuple):
    """An order's influence against the exact one: ratios of norms over all entries."""

    share: Array | np.ndarray  # [T, B]  |S_n * J_t| / |J_t|
    size: Array | np.ndarray  # [T, B]  |J^(n)_t| / |J_t|
    error: Array | np.ndarray  # [T, B]  |J^(n)_t - J_t| / |J_t|


def influence_bias(
    cell: nn.RNNCellBase,
    params: Params,
    mask: Params,
    xs: Array,
    resets: Array | None,
    orders: Sequence[int],
) -> dict[int, Bias]:
    """Follows the exact influence and those of some orders over a segment from fresh streams.

    Streams go one after the other, so that memory is that of one.

    Args:
      cell: the cell, unbound.
      params: its parameters.
      mask: 0/1 arrays shaped like some of `params`; a leaf that is missing is dense.
      xs: inputs `[T, B, M]`.
      resets: bool `[T, B]`, true where a stream starts anew before the step; None for never.
      orders: the n of (5), each at least 1.

    Returns:
      For each order its `Bias`. Where the exact influence is 0, nothing of it is lost: the ratios
      are 1 and the error is 0.

    Raises:
      ValueError: an order is below 1, or the derivatives of the cell leave something out.
    """
    check_exact(cell)
    params = apply_mask(params, mask)
    view = general.flat(cell, params, xs[0])
    columns = np.flatnonzero(existing(params, mask))  # weights that are not there have no influence
    patterns = [influence_pattern(cell, params, mask, xs[0], n)[:, columns] for n in orders]
    keep = jnp.asarray(np.stack([np.ones_like(patterns[0]), *patterns]))  # [1 + orders, U N, P]
    theta = ravel_pytree(params)[0]
    initial = view.state(cell.initialize_carry(jax.random.key(0), (1, *xs.shape[2:])))[0]
    if resets is None:
        resets = jnp.zeros(xs.shape[:2], bool)

    def after(weights: Array, h_tm1: Array, x_t: Array) -> Array:
        return view.step(theta.at[columns].set(weights), h_tm1, x_t)

    def step(state: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple, Bias]:
        x_t, reset_t = inputs
        h_tm1, J_tm1 = where_reset(reset_t, (initial, jnp.zeros_like(state[1])), state)
        I_t, D_t = jax.jacrev(after, (0, 1))(theta[columns], h_tm1, x_t)
        followed = jnp.einsum("rl,nlp->nrp", D_t, J_tm1)
        J_t = jnp.where(keep, I_t[None] + followed, 0)  # (2), (5)
        return (after(theta[columns], h_tm1, x_t), J_t), _compared(keep, J_t)

    def stream(inputs: tuple[Array, Array]) -> Bias:
        nothing = jnp.zeros(keep.shape, influence_dtype(params))
        return jax.lax.scan(step, (initial, nothing), inputs)[1]

    @jax.jit
    def run(xs: Array, resets: Array) -> Bias:
        return jax.lax.map(stream, (xs.swapaxes(0, 1), resets.swapaxes(0, 1)))

    with jax.default_matmul_precision("highest"):
        ratios: Bias = jax.device_get(run(xs, resets))  # [B, T, orders]
    return {n: Bias(*(x[..., k].T for x in ratios)) for k, n in enumerate(orders)}


def bias_gib(params: Params, mask: Params, states: int, orders: int) -> float:
    """What `influence_bias` needs, about: for each influence what was, what is, and a product.

    Args:
      params: the cell's parameters, or their shapes.
      mask: as in `influence_bias`.
      states: the numbers in the state of a stream, `U N`.
      orders: how many are followed beside the exact one.
    """
    entries = states * int(existing(params, mask).sum())
    return 3 * (1 + orders) * entries * jnp.dtype(influence_dtype(params)).itemsize / 2**30


def _compared(keep: Array, J_t: Array) -> Bias:
    """Ratios `[orders]`; the first of the influences is the exact one."""

    def norm(x: Array) -> Array:
        return jnp.sqrt((x * x).sum((-2, -1)))

    exact, others = J_t[:1], J_t[1:]
    whole = norm(exact)

    def ratio(part: Array, of_nothing: float) -> Array:
        return jnp.where(whole > 0, norm(part) / jnp.where(whole > 0, whole, 1), of_nothing)

    inside = jnp.where(keep[1:], exact, 0)
    return Bias(ratio(inside, 1.0), ratio(others, 1.0), ratio(others - exact, 0.0))
