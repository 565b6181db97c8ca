"""Recurrent PPO in nnx, one file: a recurrent layer of one's own, and `OnlineRNN` in its place.

The same task, losses and sizes as `ppo_rnn.py`: the corridor of the T-maze is six rollouts long.
Run it:

    python examples/nnx_ppo.py                               # one after the other
    python examples/nnx_ppo.py --core online --seed 1

Expect the layer whose gradient ends with the rollout to stay at chance, .5, and `OnlineRNN` to
solve the maze. Measured, seeds 0, 1, 2: .50, .47, .50 against 1.00, .98, .98 in the last of ten
reports. Both read the rollout again when it has been learnt from; only `OnlineRNN` has to.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from snaprl.cores.nnx import OnlineRNN
from snaprl.envs import AutoResetEnv, AutoState, AutoStep, TMaze, auto_reset

STREAMS, WINDOW, EPOCHS, MINIBATCHES = 64, 16, 4, 2
DISCOUNT, TRACE_DECAY, CLIP, ENTROPY_COST, VALUE_COST = 0.99, 0.95, 0.2, 0.02, 0.5
LEARNING_RATE, MAX_GRAD_NORM, FEATURES, UNITS, REPORTS = 1e-3, 0.5, 32, 64, 10
INPUTS, ACTIONS = 4, 3


class Windowed(nnx.Module):
    """The layer as it was: restarts where an episode does; the gradient ends with the rollout."""

    def __init__(self, cell: nnx.GRUCell) -> None:
        self.cell = cell

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> Any:
        return self.cell.initialize_carry(input_shape, rngs)

    def step(self, carry: Any, x: Array, reset: Array) -> tuple[Any, Array]:
        return self.cell(jnp.where(reset[:, None], 0.0, carry), x)

    def __call__(self, carry: Any, xs: Array, resets: Array) -> tuple[Any, Array]:
        return jax.lax.scan(lambda h, inputs: self.step(h, *inputs), carry, (xs, resets))


class ActorCritic(nnx.Module):
    """Encoder, recurrent layer, policy and value; `first` is true where an episode starts."""

    def __init__(self, rnn: Windowed | OnlineRNN, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.Linear(INPUTS, FEATURES, rngs=rngs)
        self.rnn = rnn
        small = nnx.initializers.orthogonal(0.01)
        self.policy = nnx.Linear(UNITS, ACTIONS, kernel_init=small, rngs=rngs)
        self.value = nnx.Linear(UNITS, 1, rngs=rngs)

    def __call__(self, carry: Any, observation: Array, first: Array) -> tuple[Any, Array, Array]:
        """Reads a rollout `[T, B, ...]`."""
        carry, ys = self.rnn(carry, nnx.relu(self.encoder(observation)), first)
        return carry, self.policy(ys), self.value(ys)[..., 0]

    def act(self, carry: Any, observation: Array, first: Array) -> tuple[Any, Array, Array]:
        """Reads one step `[B, ...]`."""
        carry, y = self.rnn.step(carry, nnx.relu(self.encoder(observation)), first)
        return carry, self.policy(y), self.value(y)[..., 0]


class Transition(NamedTuple):
    """What one step of the rollout leaves: `[B, ...]`, stacked to `[T, B, ...]`."""

    observation: Array
    first: Array  # bool: the observation starts an episode
    action: Array
    log_prob: Array
    value: Array
    after: AutoStep  # what the environment answered


class Runner(NamedTuple):
    """Where the streams stand."""

    carry: Any  # the recurrent layer's
    env: AutoState
    observation: Array
    first: Array
    key: Array


def log_prob_of(logits: Array, action: Array) -> Array:
    return jnp.take_along_axis(nnx.log_softmax(logits), action[..., None], -1)[..., 0]


def advantages(batch: Transition, last_value: Array) -> Array:
    """Generalised advantage estimates `[T, B]`, which stop where an episode ends."""

    def back(after: tuple[Array, Array], step: Transition) -> tuple[tuple[Array, Array], Array]:
        advantage, value = after
        error = step.after.reward + DISCOUNT * value * (1.0 - step.after.terminated) - step.value
        advantage = error + DISCOUNT * TRACE_DECAY * (1.0 - step.after.ended) * advantage
        return (advantage, step.value), advantage

    end = (jnp.zeros_like(last_value), last_value)
    return jax.lax.scan(back, end, batch, reverse=True)[1]


def ppo_loss(agent: ActorCritic, start: Any, batch: Transition, advantage: Array) -> Array:
    """The clipped loss, of some of the streams."""
    _, logits, value = agent(start, batch.observation, batch.first)
    mask = batch.after.mask  # 0 where a step was the reset between two episodes
    weight = mask / jnp.maximum(mask.sum(), 1.0)
    mean = jnp.sum(weight * advantage)
    scale = jnp.sqrt(jnp.sum(weight * (advantage - mean) ** 2)) + 1e-8
    advantage, returns = (advantage - mean) / scale, advantage + batch.value
    ratio = jnp.exp(log_prob_of(logits, batch.action) - batch.log_prob)
    clipped = jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    entropy = -jnp.sum(nnx.softmax(logits) * nnx.log_softmax(logits), -1)
    value_loss = 0.5 * (value - returns) ** 2
    return jnp.sum(weight * (policy_loss + VALUE_COST * value_loss - ENTROPY_COST * entropy))


def learn(
    env: AutoResetEnv, agent: ActorCritic, optimizer: nnx.Optimizer, runner: Runner
) -> tuple[Runner, Array]:
    """One rollout and the epochs over it; returns the episodes ended and solved."""

    def act_and_step(runner: Runner, _: None) -> tuple[Runner, Transition]:
        carry, env_state, observation, first, key = runner
        key, action_key, env_key = jax.random.split(key, 3)
        carry, logits, value = agent.act(carry, observation, first)
        action = jax.random.categorical(action_key, logits)
        env_keys = jax.random.split(env_key, STREAMS)
        env_state, after = jax.vmap(env.step)(env_state, action, env_keys)
        log_prob = log_prob_of(logits, action)
        transition = Transition(observation, first, action, log_prob, value, after)
        return Runner(carry, env_state, after.observation, after.first, key), transition

    start = runner.carry
    runner, batch = jax.lax.scan(act_and_step, runner, None, WINDOW)
    _, _, last_value = agent.act(runner.carry, runner.observation, runner.first)
    advantage = advantages(batch, last_value)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def epochs(learner: Any, streams: Array) -> Any:
        agent, optimizer = learner
        of_streams = jax.tree.map(lambda x: x[streams], start)
        steps, targets = jax.tree.map(lambda x: x[:, streams], (batch, advantage))
        optimizer.update(agent, nnx.grad(ppo_loss)(agent, of_streams, steps, targets))
        return learner

    key, shuffle_key = jax.random.split(runner.key)
    orders = [jax.random.permutation(k, STREAMS) for k in jax.random.split(shuffle_key, EPOCHS)]
    epochs((agent, optimizer), jnp.stack(orders).reshape(EPOCHS * MINIBATCHES, -1))
    # acting has moved the hidden state alone: read again, for the influence
    carry, _, _ = agent(start, batch.observation, batch.first)
    counts = jnp.stack([batch.after.ended.sum(), batch.after.success.sum()])
    return runner._replace(carry=carry, key=key), counts


def begin(env: AutoResetEnv, most: int, key: Array) -> tuple[AutoState, Array]:
    """Starts a stream and walks up to `most` steps, so that streams do not end in step."""
    init_key, count_key, walk_key = jax.random.split(key, 3)

    def walk(_: Array, at: tuple[AutoState, Array]) -> tuple[AutoState, Array]:
        state, after = env.step(at[0], jnp.int32(0), walk_key)
        return state, after.observation

    count = jax.random.randint(count_key, (), 0, most)
    return jax.lax.fori_loop(0, count, walk, env.init(init_key))


def train(agent: ActorCritic, name: str, args: argparse.Namespace) -> None:
    """Trains, and prints the share of episodes solved."""
    env = auto_reset(TMaze(length=args.length, passive=True).make())
    per_report = max(1, args.steps // (REPORTS * STREAMS * WINDOW))  # updates
    key, env_key = jax.random.split(jax.random.key(args.seed))
    starts = jax.vmap(functools.partial(begin, env, args.length))
    env_state, observation = starts(jax.random.split(env_key, STREAMS))
    carry = agent.rnn.initialize_carry((STREAMS, FEATURES), nnx.Rngs(args.seed))
    runner = Runner(carry, env_state, observation, jnp.ones(STREAMS, bool), key)
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, REPORTS * per_report * EPOCHS * MINIBATCHES)
    adam = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adam(rate))
    optimizer = nnx.Optimizer(agent, adam, wrt=nnx.Param)
    update = nnx.jit(functools.partial(learn, env))
    for report in range(1, REPORTS + 1):
        counts = []
        for _ in range(per_report):
            runner, count = update(agent, optimizer, runner)
            counts.append(count)
        ended, solved = np.sum(counts, axis=0)
        steps, success = report * per_report * STREAMS * WINDOW, solved / max(ended, 1)
        print(f"{name:>8}  steps {steps:>7}  success {success:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", choices=["windowed", "online", "both"], default="both")
    parser.add_argument("--steps", type=int, default=512_000, help="of the environment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=100, help="of the corridor")
    args = parser.parse_args()
    for name, layer in {"windowed": Windowed, "online": OnlineRNN}.items():
        if args.core in (name, "both"):
            rngs = nnx.Rngs(args.seed)
            rnn = layer(nnx.GRUCell(FEATURES, UNITS, rngs=rngs))
            train(ActorCritic(rnn, rngs), name, args)


if __name__ == "__main__":
    main()
