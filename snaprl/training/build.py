"""From a config to what it describes: environments, agent, learner, loop."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import jax.numpy as jnp
import optax

from snaprl import envs
from snaprl.agents import ActorCriticLoss, Agent, NetworkConfig, actor_critic
from snaprl.training import parts
from snaprl.training.errors import UserError
from snaprl.training.learner import Learner, make_learner
from snaprl.training.schema import Config, OptimizerConfig

Array = Any


class Built(NamedTuple):
    """What a config describes."""

    agent: Agent
    learner: Learner
    pure: envs.AutoResetEnv | None  # the environment as pure functions, where it runs on device
    updates: int  # of the whole training
    updates_per_report: int
    steps_per_update: int
    facts: Mapping[str, str] = {}  # what a checkpoint belongs to besides its config


def build(config: Config) -> Built:
    """Builds agent and learner for a config's environment.

    Raises:
      UserError: the environment, or one of its arguments or spaces, is not known or supported.
    """
    t = config.training
    try:
        net = network(config)
    except ValueError as error:
        raise UserError(f"agent.method {config.agent.method}: {error}") from error
    try:
        pure = envs.make_pure(config.env.id, **config.env.kwargs) if t.loop != "host" else None
        if t.loop == "device" and pure is None:
            raise UserError(
                f"{config.env.id} is no environment of pure functions: training.loop must be "
                "'host' or 'auto'"
            )
        spaces = pure or _spaces(config)
        agent = actor_critic(spaces.observation_space, spaces.action_space, net, loss(config))
    except (ValueError, TypeError, ModuleNotFoundError, gymnasium.error.Error) as error:
        given = f" (env.kwargs is {config.env.kwargs})" if isinstance(error, TypeError) else ""
        raise UserError(f"env.id {config.env.id}: {error}{given}") from error
    steps_per_update = t.streams * t.unroll
    updates = -(-t.steps // steps_per_update)
    return Built(
        agent=agent,
        learner=make_learner(agent.loss, optimizer(config.optimizer, updates), whole_bank=True),
        pure=envs.auto_reset(pure) if pure else None,
        updates=updates,
        updates_per_report=max(1, min(updates, t.report_every // steps_per_update)),
        steps_per_update=steps_per_update,
    )


class _Spaces(NamedTuple):
    observation_space: gymnasium.Space
    action_space: gymnasium.Space


def _spaces(config: Config) -> _Spaces:
    one = make_envs(config, 1)
    one.close()
    return _Spaces(one.single_observation_space, one.single_action_space)


def make_envs(config: Config, copies: int) -> gymnasium.vector.VectorEnv:
    """Copies of a config's environment on the host."""
    arguments: dict[str, Any] = dict(config.env.kwargs)
    return envs.make_vec(config.env.id, copies, **arguments)


def network(config: Config) -> NetworkConfig:
    """The network that a config describes."""
    a = config.agent
    return NetworkConfig(
        cell=parts.cell_class(a.cell),
        features=a.features,
        method=parts.make_method(a.method),
        fan_in=a.fan_in,
        encoder=a.encoder,
        last_action=a.last_action,
        last_reward=a.last_reward,
        dtype=jnp.dtype(a.dtype),
    )


def loss(config: Config) -> ActorCriticLoss:
    """The loss that a config describes."""
    return ActorCriticLoss(**dataclasses.asdict(config.loss))


def optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Adam, after clipping by the global norm, on the config's schedule over `updates` updates."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, optax.adam(learning_rate(config, updates)))


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The config's schedule over `updates` updates."""
    peak = config.learning_rate
    end = peak * config.final_learning_rate_fraction
    warmup = int(updates * config.warmup_fraction)
    rest = max(1, updates - warmup)
    schedules = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "cosine": lambda: optax.cosine_decay_schedule(
            peak, rest, config.final_learning_rate_fraction
        ),
    }
    schedule = schedules[config.schedule]()
    if warmup:
        rise = optax.linear_schedule(0.0, peak, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    return schedule
