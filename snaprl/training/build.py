"""From a config to what it describes: environments, agent, learner, loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import optax

from snaprl import envs
from snaprl.agents import ActorCriticLoss, Agent, NetworkConfig, actor_critic
from snaprl.training import actors, parts
from snaprl.training.actors import played_like
from snaprl.training.errors import UserError
from snaprl.training.host_envs import HostEnvs
from snaprl.training.learner import Learner, make_learner
from snaprl.training.schema import Config, OptimizerConfig

Array = Any


class Built(NamedTuple):
    """What a config describes."""

    agent: Agent
    learner: Learner
    pure: envs.AutoResetEnv | None  # the environment as pure functions, where it runs on device
    observation_space: gymnasium.Space  # of one environment
    updates: int  # of the whole training
    updates_per_report: int
    steps_per_update: int


def build(config: Config) -> Built:
    """Builds agent and learner for a config's environment.

    Raises:
      UserError: the environment, or one of its arguments or spaces, is not known or supported.
    """
    t, a = config.training, config.actors
    on_device = t.loop == "device" or (t.loop == "auto" and a.engine == "local")
    _check_actors(config)
    try:
        net = network(config)
    except ValueError as error:
        raise UserError(f"agent.method {config.agent.method}: {error}") from error
    try:
        pure = envs.make_pure(config.env.id, **config.env.kwargs) if on_device else None
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
    per_update = a.count if pure else a.per_update or a.count
    steps_per_update = t.streams // a.count * per_update * t.unroll
    # one of every actor and none ever lost
    whole_bank = pure is not None or (a.engine == "local" and per_update == a.count)
    updates = -(-t.steps // steps_per_update)
    return Built(
        agent=agent,
        learner=make_learner(
            agent.loss, optimizer(config.optimizer, updates), whole_bank=whole_bank
        ),
        pure=envs.auto_reset(pure) if pure else None,
        observation_space=spaces.observation_space,
        updates=updates,
        updates_per_report=max(1, min(updates, t.report_every // steps_per_update)),
        steps_per_update=steps_per_update,
    )


def _check_actors(config: Config) -> None:
    t, a = config.training, config.actors
    if t.streams % a.count:
        raise UserError(
            f"training.streams = {t.streams} cannot be shared by actors.count = {a.count}: make it "
            "a multiple"
        )
    if a.per_update > a.count:
        raise UserError(
            f"actors.per_update = {a.per_update} segments of different actors, but there are only "
            f"actors.count = {a.count}"
        )
    if t.loop == "device" and a.engine != "local":
        raise UserError(
            f"training.loop = 'device' has no actors: actors.engine = '{a.engine}' needs 'host' or "
            "'auto'"
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


def make_actor(
    config: Config,
    index: int,
    *,
    agent: Agent | None = None,
    alive: Callable[[], None] = lambda: None,
) -> actors.Actor:
    """One of a config's actors, wherever it is to run."""
    streams = config.training.streams // config.actors.count
    return actors.Actor(
        agent or build(config).agent,
        HostEnvs(make_envs(config, streams)),
        unroll=config.training.unroll,
        discount=config.loss.discount,
        first_stream=index * streams,
        alive=alive,
    )


def make_engine(config: Config, built: Built) -> actors.Engine:
    """What runs a config's actors."""
    a, t, agent = config.actors, config.training, built.agent
    if a.engine == "local":
        return actors.LocalEngine([make_actor(config, k, agent=agent) for k in range(a.count)])
    streams = t.streams // a.count
    init = functools.partial(agent.init, streams=streams)
    shapes = {
        "played": played_like(agent, built.observation_space, streams=streams, unroll=t.unroll),
        "variables": jax.eval_shape(init, jax.random.key(0)),
    }
    supervisor = actors.Supervisor(a.restarts)
    options = {"ahead": a.ahead, "patience_s": a.patience_s, "supervisor": supervisor}
    make = functools.partial(make_actor, config)
    if a.engine == "ray":
        options |= {"address": a.ray_address, "cpus": a.ray_cpus}
        return actors.RayEngine(make, a.count, **shapes, **options)
    return actors.ProcessEngine(make, a.count, **shapes, **options)


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
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule))
