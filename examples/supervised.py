"""Recalls a cue from long before the window: `nn.RNN`, and `OnlineRNN` in its place.

A cue is heard once and asked for 39 steps later. Both models are trained on windows of 8 steps,
carry their hidden state from one window to the next, and start from the same weights; only the
gradient differs. Run it:

    python examples/supervised.py                            # one after the other
    python examples/supervised.py --core online --steps 32000 --seed 1

Expect `nn.RNN` to stay at chance, .5, and `OnlineRNN` to recall every cue after 10 000 to 14 000
steps of each stream. Measured in the last 2000 of 16 000 steps, seeds 0, 1, 2: .51, .51, .50
against 1.00, 1.00, .99.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from snaprl.cores import OnlineRNN, SnAp

SPAN, WINDOW, STREAMS, UNITS, LEARNING_RATE = 40, 8, 32, 32, 1e-2


class Windowed(nn.Module):
    """The model as it was: the state is carried on, the gradient ends at the window's edge."""

    def setup(self) -> None:
        self.rnn = nn.RNN(nn.GRUCell(UNITS), time_major=True, return_carry=True)
        self.head = nn.Dense(1)

    def __call__(self, carry: Any, xs: Array) -> tuple[Any, Array]:
        carry, ys = self.rnn(xs, initial_carry=carry)
        return carry, self.head(ys)[..., 0]

    @nn.nowrap
    def initialize_carry(self, key: Array) -> Any:
        return nn.GRUCell(UNITS).initialize_carry(key, (STREAMS, 2))


class Online(nn.Module):
    """The same model: the carry also knows how each weight has moved the state."""

    def setup(self) -> None:
        self.rnn = OnlineRNN(nn.GRUCell(UNITS), SnAp(order=1))
        self.head = nn.Dense(1)

    def __call__(self, carry: Any, xs: Array) -> tuple[Any, Array]:
        carry, ys = self.rnn(carry, xs)
        return carry, self.head(ys)[..., 0]

    @nn.nowrap
    def initialize_carry(self, key: Array) -> Any:
        return OnlineRNN(nn.GRUCell(UNITS), SnAp(order=1)).initialize_carry(key, (STREAMS, 2))


def recall_task(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Streams of `SPAN` steps after `SPAN` steps, each beginning where it likes.

    Returns:
      Inputs `[steps, STREAMS, 2]`: the cue, -1 or 1, at a span's first step, and a 1 at its last
      one, which asks for the cue; the cues and where they are asked for, both `[steps, STREAMS]`.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(steps)[:, None] + rng.integers(SPAN, size=(1, STREAMS))
    cues = rng.integers(2, size=(steps // SPAN + 2, STREAMS))
    cue, place = np.take_along_axis(cues, time // SPAN, axis=0), time % SPAN
    asked = place == SPAN - 1
    xs = np.stack([np.where(place == 0, 2.0 * cue - 1.0, 0.0), asked], axis=-1)
    return xs.astype(np.float32), cue.astype(np.float32), asked.astype(np.float32)


def train(model: Windowed | Online, name: str, steps: int, seed: int) -> None:
    """Trains along the streams, window by window, and prints the share of cues recalled."""
    carry_key, init_key = jax.random.split(jax.random.key(seed))
    xs, cue, asked = recall_task(steps, seed)
    carry = model.initialize_carry(carry_key)
    params = model.init(init_key, carry, xs[:WINDOW])
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, steps // WINDOW)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    optimizer = adam.init(params)

    @jax.jit
    def learn(params: Any, optimizer: Any, carry: Any, window: Any) -> tuple[Any, Any, Any, Array]:
        xs, cue, asked = window

        def loss(params: Any) -> tuple[Array, Any]:
            outcome: Any = model.apply(params, carry, xs)
            after, logits = outcome
            each = asked * optax.sigmoid_binary_cross_entropy(logits, cue)
            right = jnp.sum(asked * ((logits > 0) == (cue > 0)))
            return each.sum() / jnp.maximum(asked.sum(), 1.0), (after, right)

        grads, (after, right) = jax.grad(loss, has_aux=True)(params)
        updates, optimizer = adam.update(grads, optimizer)
        return optax.apply_updates(params, updates), optimizer, after, right

    windows = steps // WINDOW
    rights, questions = [], asked[: windows * WINDOW].reshape(windows, -1).sum(1)
    for n in range(windows):
        at = slice(n * WINDOW, (n + 1) * WINDOW)
        window = xs[at], cue[at], asked[at]
        params, optimizer, carry, right = learn(params, optimizer, carry, window)
        rights.append(right)
        if (n + 1) % max(1, windows // 8) == 0:
            recent = slice(max(0, n + 1 - windows // 8), n + 1)
            share = np.sum(rights[recent]) / np.sum(questions[recent])
            print(f"{name:>6}  steps {(n + 1) * WINDOW:>6}  recalled {share:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", choices=["rnn", "online", "both"], default="both")
    parser.add_argument("--steps", type=int, default=16_000, help="of each of the 32 streams")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, model in {"rnn": Windowed(), "online": Online()}.items():
        if args.core in (name, "both"):
            train(model, name, args.steps, args.seed)


if __name__ == "__main__":
    main()
