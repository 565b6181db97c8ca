"""How far the direction of a method's gradient is from that of the exact one, step by step.

At every step the loss is a random linear function of the outputs; its gradient, (dL_t/dh_t) J_t of
(3), is had from the method itself and from `RTRL()`, on the same stream with the same losses.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from snaprl.cores.analysis.patterns import check_exact, existing
from snaprl.cores.bptt import BPTT
from snaprl.cores.kronecker import KFRTRL, OKRTRL
from snaprl.cores.online_rnn import OnlineRNN
from snaprl.cores.rflo import RFLO
from snaprl.cores.rtrl import RTRL
from snaprl.cores.segment import influence_dtype
from snaprl.cores.snap import SnAp
from snaprl.cores.types import Array, GradientMethod, Params
from snaprl.cores.uoro import UORO


class Candidate(NamedTuple):
    """A way to the gradient of a step's loss."""

    method: GradientMethod
    window: int = 1  # steps, that of the loss included, that are one segment for the method


def candidates(orders: Sequence[int] = (0, 1, 2, 3), window: int = 8) -> dict[str, Candidate]:
    """The methods that there are to compare, by name.

    Args:
      orders: of SnAp.
      window: of truncated backpropagation, beside 1; its tail stands for what lies before.
    """
    return {f"SnAp-{n}": Candidate(SnAp(order=n)) for n in orders} | {
        "RFLO": Candidate(RFLO()),
        "UORO": Candidate(UORO()),
        "KF-RTRL": Candidate(KFRTRL()),
        "OK-RTRL (rank 4)": Candidate(OKRTRL(rank=4)),
        "BPTT (window 1)": Candidate(BPTT()),
        f"BPTT (window {window})": Candidate(BPTT(), window),
        f"BPTT (window {window}) + SnAp-1": Candidate(BPTT(tail=SnAp(order=1)), window),
    }


def gradient_cosines(
    cell: nn.RNNCellBase,
    params: Params,
    mask: Params,
    xs: Array,
    resets: Array | None,
    methods: Mapping[str, Candidate],
    key: Array,
) -> dict[str, np.ndarray]:
    """Compares gradients of methods with the exact one.

    Args:
      cell: the cell, unbound.
      params: its parameters.
      mask: 0/1 arrays shaped like some of `params`; a leaf that is missing is dense.
      xs: inputs `[T, B, M]`; streams start afresh.
      resets: bool `[T, B]`, true where a stream starts anew before the step; None for never.
      methods: what is compared, by name.
      key: consumed; draws the losses, and what methods draw.

    Returns:
      For each name the cosines `[T, B]`, of each stream's own gradient; 1 where both gradients are
      zero, 0 where one is.

    Raises:
      TypeError: a method does not know the cell.
      ValueError: the derivatives of the cell leave something out.
    """
    check_exact(cell)
    if resets is None:
        resets = jnp.zeros(xs.shape[:2], bool)
    loss_key, *keys = jax.random.split(key, 2 + len(methods))

    def of(candidate: Candidate, key: Array) -> Array:
        rnn = OnlineRNN(cell, candidate.method, mask=mask or None)
        variables = {"params": {"cell": params}}
        carry = rnn.initialize_carry(key, xs.shape[1:])
        like: Any = jax.eval_shape(lambda: rnn.apply(variables, carry, xs[:1], resets[:1])[1])
        weights = jax.random.normal(loss_key, (len(xs), *like.shape[1:]), like.dtype)
        return _gradients(rnn, variables, candidate.window, carry, xs, resets, weights)

    exact = of(Candidate(RTRL()), keys[0])
    compared = jax.jit(_cosine)
    return {
        name: np.asarray(compared(of(candidate, key), exact)).T
        for (name, candidate), key in zip(methods.items(), keys[1:], strict=True)
    }


def cosines_gib(params: Params, mask: Params, states: int, steps: int, streams: int) -> float:
    """What `gradient_cosines` needs, about: exact influences, and the gradients of every step.

    Args:
      params: the cell's parameters, or their shapes.
      mask: as in `gradient_cosines`.
      states: the numbers in the state of a stream, `U N`.
      steps: of the segment, T.
      streams: B.
    """
    per_stream = 3 * states * int(existing(params, mask).sum()) + 3 * steps * _size(params)
    return streams * per_stream * jnp.dtype(influence_dtype(params)).itemsize / 2**30


def _gradients(
    rnn: OnlineRNN,
    variables: dict[str, Any],
    window: int,
    carry: Any,
    xs: Array,
    resets: Array,
    weights: Array,
) -> Array:
    """The gradient of every step's loss in every stream: `[B, T, P]`."""
    # the first windows begin before the stream does: the reset at its first step cuts that off
    before = window - 1
    xs = jnp.pad(xs, ((before, 0), (0, 0), (0, 0)))
    resets = jnp.pad(resets.at[0].set(True), ((before, 0), (0, 0)))
    apply: Any = rnn.apply

    def stream(inputs: tuple) -> Array:
        carry, xs, resets, weights = inputs
        # where the stream stood before each step of the window: [window, 1, ...]
        stood = jax.tree.map(lambda x: jnp.stack([x[None]] * window), carry)

        def step(stood: Any, inputs: tuple) -> tuple[Any, Array]:
            t, weights_t = inputs
            seen, reset = (
                jax.lax.dynamic_slice_in_dim(x, t, window)[:, None] for x in (xs, resets)
            )
            first, last = (jax.tree.map(lambda x, k=k: x[k], stood) for k in (0, -1))

            def loss(params: Any) -> Array:
                ys = apply({"params": params}, first, seen, reset)[1]
                return jnp.vdot(weights_t, ys[-1, 0])

            after = apply(variables, last, seen[-1:], reset[-1:])[0]
            stood = jax.tree.map(lambda x, y: jnp.concatenate([x[1:], y[None]]), stood, after)
            return stood, ravel_pytree(jax.grad(loss)(variables["params"]))[0]

        return jax.lax.scan(step, stood, (jnp.arange(len(weights)), weights))[1]

    @jax.jit
    def run(carry: Any, xs: Array, resets: Array, weights: Array) -> Array:
        by_stream = (x.swapaxes(0, 1) for x in (xs, resets, weights))
        return jax.lax.map(stream, (carry, *by_stream))

    return run(carry, xs, resets, weights)


def _cosine(x: Array, y: Array) -> Array:
    """Of `[..., P]` and `[..., P]`."""
    # scaled first: the square of what has long decayed would be 0
    x, y = (z / _or_one(jnp.abs(z).max(-1, keepdims=True)) for z in (x, y))
    norms = jnp.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    both_zero = ~(x.any(-1) | y.any(-1))
    return jnp.where(both_zero, 1.0, (x * y).sum(-1) / _or_one(norms))


def _or_one(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _size(params: Params) -> int:
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
