"""Trains on a probe of snaprl/envs/probes.py and reads what was learnt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.agents import ActorCriticLoss, NetworkConfig, RecurrentActorCritic, make_agent
from snaprl.envs import auto_reset
from snaprl.envs.probes import PROBES
from snaprl.training.device_loop import DeviceLoop
from snaprl.training.learner import make_learner
from snaprl.training.optimizers import optimizer
from snaprl.training.schema import OptimizerConfig

DISCOUNT, STREAMS, UNROLL = 0.8, 8, 4
# no last action or reward: what a probe isolates must come through the observation alone
NETWORK = NetworkConfig(features=8, last_action=False, last_reward=False)


@functools.cache
def trainer(name: str, updates: int) -> tuple[DeviceLoop, RecurrentActorCritic]:
    env = PROBES[name]()
    loss = ActorCriticLoss(discount=DISCOUNT, entropy_cost=0.01)
    agent = make_agent(env.observation_space, env.action_space, NETWORK, loss)
    adam = optimizer(OptimizerConfig(learning_rate=0.01, schedule="linear"), updates)
    learner = make_learner(agent.loss, adam, whole_bank=True)
    loop = DeviceLoop(
        agent,
        learner,
        auto_reset(env),
        streams=STREAMS,
        unroll=UNROLL,
        updates_per_chunk=updates,
    )
    observed = NETWORK.observed(env.observation_space, env.action_space)
    return loop, RecurrentActorCritic(NETWORK, observed, 2)


def learned(name: str, seed: int, episodes: list[list[float]], updates: int = 600):
    """Trains, and reads values and probabilities of action 1 along episodes of observations.

    Args:
      name: of the probe.
      seed: of everything.
      episodes: observations, all of one length.
      updates: of 8 streams and 4 steps.

    Returns:
      `(values, probabilities)`, each `[episodes, steps]`.
    """
    loop, net = trainer(name, updates)
    state, _ = loop.run(loop.init(jax.random.key(seed)), updates)
    x = jnp.array(episodes, jnp.float32).T[..., None]  # [T, B, 1]
    first = jnp.zeros(x.shape[:2], bool).at[0].set(True)
    width = 1
    carry = net.initial_state(jax.random.key(0), x.shape[1], width)
    values, chosen = [], []
    for x_t, first_t in zip(x, first, strict=True):
        carry, logits, value = net.apply(
            state.learner.variables, carry, {"observation": x_t}, first_t, method="step"
        )
        values.append(value)
        chosen.append(jax.nn.softmax(logits)[:, 1])
    return np.array(values).T, np.array(chosen).T
