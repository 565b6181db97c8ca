"""Evaluation: episodes with a policy that does not learn."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.agents import Agent
from snaprl.envs import AutoResetEnv
from snaprl.training.errors import Stopped
from snaprl.training.host_envs import HostEnvs
from snaprl.training.player import play_step, remember_nothing

Array = jax.Array
PyTree = Any
Stop = Callable[[], bool]
Evaluate = Callable[..., dict[str, float]]  # (variables, key, stop) -> averages; consumes the key
COPIES = 256  # environments side by side, at most
AVERAGED = ("episode_return", "episode_length", "success")


def never() -> bool:
    """Nobody asks to stop."""
    return False


def device_evaluator(
    agent: Agent, env: AutoResetEnv, *, episodes: int, greedy: bool, max_steps: int
) -> Evaluate:
    """Makes what plays episodes in one program, which is compiled at its first call.

    Every copy of the environment plays the same number of episodes, so that short ones do not count
    more than long ones. An episode that is not over after `max_steps` steps of its copy per episode
    counts as it stands, without success.

    Args:
      agent: acts.
      env: unbatched.
      episodes: how many, at least: they are rounded up to fill the copies.
      greedy: take the likeliest action instead of drawing one.
      max_steps: per episode.

    Returns:
      `(variables, key, stop) -> averages`: `episodes`, and averages over them: `episode_return`,
      `episode_length`, `success` where the task knows it.
    """
    each = -(-episodes // COPIES)
    copies = -(-episodes // each)
    limit = _limit(max_steps, each)

    @jax.jit
    def play(variables: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        key, env_key, state_key = jax.random.split(key, 3)
        envs, observation = jax.vmap(env.init)(jax.random.split(env_key, copies))
        first = jnp.ones(copies, bool)
        nothing = agent.no_action(copies), jnp.zeros(copies)
        hidden = agent.initial_state(state_key, copies).hidden
        totals = {name: jnp.zeros(copies) for name in AVERAGED}
        observation = agent.observe(observation, *nothing, first)
        done = jnp.zeros(copies, jnp.int32)

        def body(carry: tuple) -> tuple:
            t, envs, hidden, observation, first, key, done, totals = carry
            key, act_key, env_key = jax.random.split(key, 3)
            act_key = None if greedy else act_key
            hidden, act = agent.act(variables, hidden, observation, first, act_key)
            keys = jax.random.split(env_key, copies)
            envs, out = jax.vmap(env.step)(envs, agent.to_env(act.action), keys)
            # the last step there is ends what is still going on
            counts = (out.ended | ((t + 1 == limit) & (out.mask > 0))) & (done < each)
            totals = {name: totals[name] + counts * getattr(out, name) for name in AVERAGED}
            observation = agent.observe(out.observation, act.action, out.reward, out.first)
            return t + 1, envs, hidden, observation, out.first, key, done + counts, totals

        def unfinished(carry: tuple) -> Array:
            return (carry[0] < limit) & (carry[6] < each).any()

        start = (jnp.int32(0), envs, hidden, observation, first, key, done, totals)
        return jax.lax.while_loop(unfinished, body, start)[6:]

    def evaluate(variables: PyTree, key: Array, stop: Stop = never) -> dict[str, float]:
        del stop  # it does not take long
        done, totals = jax.device_get(play(variables, key))
        return _averages(totals, float(done.sum()), env.knows_success)

    return evaluate


def host_evaluator(
    agent: Agent, envs: HostEnvs, *, episodes: int, greedy: bool, max_steps: int
) -> Evaluate:
    """Makes what plays episodes in gymnasium environments; see `device_evaluator`.

    It raises `Stopped` where it is asked to stop.
    """
    each = -(-episodes // envs.streams)
    limit = _limit(max_steps, each)
    step = jax.jit(functools.partial(play_step, agent, greedy=greedy))

    def evaluate(variables: PyTree, key: Array, stop: Stop = never) -> dict[str, float]:
        key, env_key, state_key = jax.random.split(key, 3)
        seed = int(jax.random.randint(env_key, (), 0, 2**31 - 1))
        observation = envs.reset(seed)
        reward, first = np.zeros(envs.streams), np.ones(envs.streams, bool)
        memory = remember_nothing(agent, key, state_key, envs.streams)
        done = np.zeros(envs.streams, int)
        totals = {name: np.zeros(envs.streams) for name in AVERAGED}
        for t in range(limit):
            if stop():
                raise Stopped
            memory, action = step(variables, memory, observation, reward, first)
            out = envs.step(np.asarray(action))
            counts = (out.ended | ((t + 1 == limit) & (out.mask > 0))) & (done < each)
            done += counts
            totals = {name: totals[name] + counts * getattr(out, name) for name in AVERAGED}
            if (done >= each).all():
                break
            observation, reward, first = out.observation, out.reward, out.first
        return _averages(totals, float(done.sum()), envs.knows_success)

    return evaluate


def _limit(max_steps: int, each: int) -> int:
    """Steps in which a copy plays `each` episodes, the resets between them included."""
    return (max_steps + 1) * each - 1


def _averages(totals: dict[str, Any], episodes: float, knows_success: bool) -> dict[str, float]:
    names = [name for name in totals if name != "success" or knows_success]
    return {"episodes": episodes} | {n: float(np.sum(totals[n])) / max(episodes, 1) for n in names}
