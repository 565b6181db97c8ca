"""A cell of your own: anything that is a flax `RNNCellBase` can learn online.

This one computes its candidate in two layers, so that a weight reaches several units within one
step; flax has no such cell, and snaprl does not know it. `OnlineRNN` finds out which numbers of the
state each weight can move from the cell itself. There are two rules: the carry is a tree of
floating arrays, and the output is a function of the new ones alone.

A cue is shown, and asked for 19 steps later; windows have 2 steps. All methods start from the same
weights. On seeds 0, 1, 2 the last eighth of the training recalls, by truncated backpropagation,
.50 .51 .50 (chance is .5), by SnAp-1 1.00 each, by exact RTRL 1.00 1.00 .88.

    python examples/own_cell.py --seed 0
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from snaprl.cores import BPTT, RTRL, GradientMethod, OnlineRNN, SnAp

Array = jax.Array
LENGTH, WINDOW, STREAMS, UNITS = 20, 2, 32, 12
METHODS: dict[str, GradientMethod] = {"bptt": BPTT(), "snap1": SnAp(order=1), "rtrl": RTRL()}


class TwoLayerCell(nn.RNNCellBase):
    """`h = (1 - z) h + z tanh(W2 tanh(W1 [h, x]))`, with a gate z of `[h, x]`."""

    features: int

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        both = jnp.concatenate([carry, inputs], axis=-1)
        hidden = nn.tanh(nn.Dense(self.features, name="inner")(both))
        candidate = nn.tanh(nn.Dense(self.features, name="outer")(hidden))
        z = nn.sigmoid(nn.Dense(self.features, name="gate")(both))
        new = (1 - z) * carry + z * candidate
        return new, new

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """A state of zeros."""
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


def episodes(key: Array, number: int) -> tuple[Array, Array, Array]:
    """Inputs `[T, B, 2]` (the cue, and whether it is asked for), targets and resets `[T, B]`."""
    cues = jax.random.bernoulli(key, shape=(number, STREAMS)).astype(jnp.float32)
    step = jnp.arange(number * LENGTH) % LENGTH
    cue = jnp.repeat(cues, LENGTH, axis=0)
    shown = jnp.where(step[:, None] == 0, 2 * cue - 1, 0.0)
    asked = jnp.broadcast_to((step == LENGTH - 1)[:, None], cue.shape)
    return (
        jnp.stack([shown, asked.astype(jnp.float32)], -1),
        cue,
        jnp.broadcast_to((step == 0)[:, None], cue.shape),
    )


def train(name: str, steps: int, seed: int) -> None:
    """Trains the cell by one method, and says how often it recalls the cue."""
    rnn, head = OnlineRNN(TwoLayerCell(UNITS), METHODS[name]), nn.Dense(1)
    core_key, head_key, data_key = jax.random.split(jax.random.key(seed), 3)
    carry = rnn.initialize_carry(core_key, (STREAMS, 2))
    xs, targets, resets = episodes(data_key, steps // (STREAMS * LENGTH))
    params = {
        "core": rnn.init(core_key, carry, xs[:WINDOW]),
        "head": head.init(head_key, jnp.zeros((1, UNITS))),
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def learn(state: tuple, window: tuple[Array, Array, Array]) -> tuple[tuple, Array]:
        params, opt_state, carry = state
        xs, targets, resets = window

        def loss(params: Any) -> tuple[Array, tuple]:
            after, ys = rnn.apply(params["core"], carry, xs, resets)
            logits: Any = head.apply(params["head"], ys)
            asked = xs[..., 1]
            each = optax.sigmoid_binary_cross_entropy(logits[..., 0], targets)
            right = asked * ((logits[..., 0] > 0) == (targets > 0.5))
            return (asked * each).sum() / STREAMS, (after, right.sum() / STREAMS)

        grads, (carry, right) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), right

    windows = jax.tree.map(lambda x: x.reshape(-1, WINDOW, *x.shape[1:]), (xs, targets, resets))
    run = jax.jit(lambda state, windows: jax.lax.scan(learn, state, windows))
    state, parts = (params, optimiser.init(params), carry), 8
    size = len(windows[0]) // parts
    for part in range(parts):
        now = jax.tree.map(lambda x, part=part: x[part * size : (part + 1) * size], windows)
        state, right = run(state, now)
        recalled = float(right.sum()) / (size * WINDOW / LENGTH)
        done = (part + 1) * size * WINDOW * STREAMS
        print(f"{name:6s} steps {done:8d}  recalled {recalled:.2f}", flush=True)


def main() -> None:
    """Trains by each method in turn."""
    parser = argparse.ArgumentParser(description="A cell of your own, trained online.")
    parser.add_argument("--steps", type=int, default=384_000, help="steps of all streams together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    for name in arguments.methods:
        train(name, arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
