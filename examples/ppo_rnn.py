"""Recurrent PPO in one file: rollout, advantages and epochs inside one jitted program.

The recurrent layer is a flax cell under `nn.scan`; its gradient ends where the rollout begins. The
task is a T-maze whose corridor, of 100 steps, is six rollouts long: what was shown at its start
says where to turn at its end. Run it:

    python examples/ppo_rnn.py
    python examples/ppo_rnn.py --length 32 --seed 1          # two rollouts

Expect it to stay at chance, .5: the last of ten reports says .50, .47, .49 with seeds 0, 1, 2.
`ppo_online.py` is this program with another recurrent layer, five lines away.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from jax import Array

from snaprl.envs import AutoResetEnv, AutoState, AutoStep, TMaze, auto_reset

STREAMS, WINDOW, EPOCHS, MINIBATCHES = 64, 16, 4, 2
DISCOUNT, TRACE_DECAY, CLIP, ENTROPY_COST, VALUE_COST = 0.99, 0.95, 0.2, 0.02, 0.5
LEARNING_RATE, MAX_GRAD_NORM, FEATURES, UNITS, REPORTS = 1e-3, 0.5, 32, 64, 10


class ActorCritic(nn.Module):
    """Encoder, recurrent layer, policy and value; `first` is true where an episode starts."""

    rnn: Any
    actions: int

    def setup(self) -> None:
        self.encoder = nn.Dense(FEATURES)
        self.policy = nn.Dense(self.actions, kernel_init=nn.initializers.orthogonal(0.01))
        self.value = nn.Dense(1)

    def __call__(self, carry: Any, observation: Array, first: Array) -> tuple[Any, Array, Array]:
        """Reads a rollout `[T, B, ...]`."""
        xs = nn.relu(self.encoder(observation))
        scan = nn.scan(ActorCritic.step, variable_broadcast="params", split_rngs={"params": False})
        carry, ys = scan(self, carry, xs, first)
        return carry, self.policy(ys), self.value(ys)[..., 0]

    def act(self, carry: Any, observation: Array, first: Array) -> tuple[Any, Array, Array]:
        """Reads one step `[B, ...]`."""
        carry, y = self.step(carry, nn.relu(self.encoder(observation)), first)
        return carry, self.policy(y), self.value(y)[..., 0]

    def step(self, carry: Any, x: Array, first: Array) -> tuple[Any, Array]:
        return self.rnn(jnp.where(first[:, None], 0.0, carry), x)


class Transition(NamedTuple):
    """What one step of the rollout leaves: `[B, ...]`, stacked to `[T, B, ...]`."""

    observation: Array
    first: Array  # bool: the observation starts an episode
    action: Array
    log_prob: Array
    value: Array
    after: AutoStep  # what the environment answered


class Runner(NamedTuple):
    """Everything that one update hands to the next."""

    train: TrainState
    carry: Any  # the recurrent layer's, of every stream
    env: AutoState
    observation: Array
    first: Array
    key: Array


def log_prob_of(logits: Array, action: Array) -> Array:
    return jnp.take_along_axis(nn.log_softmax(logits), action[..., None], -1)[..., 0]


def advantages(batch: Transition, last_value: Array) -> Array:
    """Generalised advantage estimates `[T, B]`, which stop where an episode ends."""

    def back(after: tuple[Array, Array], step: Transition) -> tuple[tuple[Array, Array], Array]:
        advantage, value = after
        error = step.after.reward + DISCOUNT * value * (1.0 - step.after.terminated) - step.value
        advantage = error + DISCOUNT * TRACE_DECAY * (1.0 - step.after.ended) * advantage
        return (advantage, step.value), advantage

    end = (jnp.zeros_like(last_value), last_value)
    return jax.lax.scan(back, end, batch, reverse=True)[1]


def read(train: TrainState, start: Any, batch: Transition) -> tuple[Any, Array, Array]:
    """Reads a rollout, or some of its streams, from where the rollout started."""
    return train.apply_fn(train.params, start, batch.observation, batch.first)


def ppo_loss(
    params: Any, train: TrainState, start: Any, batch: Transition, advantage: Array
) -> Array:
    """The clipped loss."""
    _, logits, value = read(train.replace(params=params), start, batch)
    mask = batch.after.mask  # 0 where a step was the reset between two episodes
    weight = mask / jnp.maximum(mask.sum(), 1.0)
    mean = jnp.sum(weight * advantage)
    scale = jnp.sqrt(jnp.sum(weight * (advantage - mean) ** 2)) + 1e-8
    advantage, returns = (advantage - mean) / scale, advantage + batch.value
    ratio = jnp.exp(log_prob_of(logits, batch.action) - batch.log_prob)
    clipped = jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    entropy = -jnp.sum(nn.softmax(logits) * nn.log_softmax(logits), -1)
    value_loss = 0.5 * (value - returns) ** 2
    return jnp.sum(weight * (policy_loss + VALUE_COST * value_loss - ENTROPY_COST * entropy))


def make_update(env: AutoResetEnv) -> Callable[[Runner, None], tuple[Runner, Array]]:
    """One rollout and the epochs over it; returns episodes ended and solved."""

    def act_and_step(runner: Runner, _: None) -> tuple[Runner, Transition]:
        train, carry, env_state, observation, first, key = runner
        key, action_key, env_key = jax.random.split(key, 3)
        carry, logits, value = train.apply_fn(train.params, carry, observation, first, method="act")
        action = jax.random.categorical(action_key, logits)
        log_prob = log_prob_of(logits, action)
        env_keys = jax.random.split(env_key, STREAMS)
        env_state, after = jax.vmap(env.step)(env_state, action, env_keys)
        transition = Transition(observation, first, action, log_prob, value, after)
        return Runner(train, carry, env_state, after.observation, after.first, key), transition

    def update(runner: Runner, _: None) -> tuple[Runner, Array]:
        start = runner.carry
        runner, batch = jax.lax.scan(act_and_step, runner, None, WINDOW)
        _, _, last_value = runner.train.apply_fn(
            runner.train.params, runner.carry, runner.observation, runner.first, method="act"
        )
        advantage = advantages(batch, last_value)

        def minibatch(train: TrainState, streams: Array) -> tuple[TrainState, None]:
            of_streams = jax.tree.map(lambda x: x[streams], start)
            steps, targets = jax.tree.map(lambda x: x[:, streams], (batch, advantage))
            grads = jax.grad(ppo_loss)(train.params, train, of_streams, steps, targets)
            return train.apply_gradients(grads=grads), None

        key, shuffle_key = jax.random.split(runner.key)
        orders = [jax.random.permutation(k, STREAMS) for k in jax.random.split(shuffle_key, EPOCHS)]
        minibatches = jnp.stack(orders).reshape(EPOCHS * MINIBATCHES, -1)
        train, _ = jax.lax.scan(minibatch, runner.train, minibatches)
        runner = runner._replace(train=train, key=key)
        return runner, jnp.stack([batch.after.ended.sum(), batch.after.success.sum()])

    return update


def begin(env: AutoResetEnv, most: int, key: Array) -> tuple[AutoState, Array]:
    """Starts a stream and walks up to `most` steps, so that streams do not end in step."""
    init_key, count_key, walk_key = jax.random.split(key, 3)

    def walk(_: Array, at: tuple[AutoState, Array]) -> tuple[AutoState, Array]:
        state, after = env.step(at[0], jnp.int32(0), walk_key)
        return state, after.observation

    count = jax.random.randint(count_key, (), 0, most)
    return jax.lax.fori_loop(0, count, walk, env.init(init_key))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=512_000, help="of the environment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=100, help="of the corridor")
    args = parser.parse_args()
    per_report = max(1, args.steps // (REPORTS * STREAMS * WINDOW))  # updates

    env = auto_reset(TMaze(length=args.length, passive=True).make())
    rnn = nn.GRUCell(UNITS)
    model = ActorCritic(rnn, actions=3)
    key, env_key, carry_key, init_key = jax.random.split(jax.random.key(args.seed), 4)
    starts = jax.vmap(functools.partial(begin, env, args.length))
    env_state, observation = starts(jax.random.split(env_key, STREAMS))
    first = jnp.ones(STREAMS, bool)
    carry = rnn.initialize_carry(carry_key, (STREAMS, FEATURES))
    params = model.init(init_key, carry, observation[None], first[None])
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, REPORTS * per_report * EPOCHS * MINIBATCHES)
    adam = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adam(rate))
    train = TrainState.create(apply_fn=model.apply, params=params, tx=adam)
    runner = Runner(train, carry, env_state, observation, first, key)

    update = make_update(env)
    run = jax.jit(lambda runner: jax.lax.scan(update, runner, None, per_report))
    for report in range(1, REPORTS + 1):
        runner, counts = run(runner)
        episodes, successes = counts.sum(0)
        steps, success = report * per_report * STREAMS * WINDOW, successes / max(episodes, 1)
        print(f"steps {steps:>7}  success {success:.2f}", flush=True)


if __name__ == "__main__":
    main()
