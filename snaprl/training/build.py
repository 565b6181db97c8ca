"""From a config to what it describes: environments, agent, learner, loop."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

from snaprl import envs
from snaprl.agents import (
    ActorCriticLoss,
    Agent,
    ImpalaLoss,
    Loss,
    NetworkConfig,
    PPOLoss,
    make_agent,
)
from snaprl.training import actors, parts
from snaprl.training.actors import played_like
from snaprl.training.errors import UserError, in_a_line
from snaprl.training.host_envs import HostEnvs
from snaprl.training.learner import Learner, make_learner
from snaprl.training.optimizers import optimizer, way
from snaprl.training.schema import Config, ImpalaConfig, PPOConfig

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
    facts: Mapping[str, str] = {}  # what a checkpoint belongs to besides its config


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
        bare = on_device and not config.env.wrappers
        pure = envs.make_pure(config.env.id, **config.env.kwargs) if bare else None
        if t.loop == "device" and pure is None:
            raise UserError(
                f"{config.env.id} is no environment of pure functions"
                f"{' once it is wrapped' if config.env.wrappers else ''}: training.loop must be "
                "'host' or 'auto'"
            )
        per_update = a.count if pure else a.per_update or a.count
        streams = t.streams // a.count * per_update
        updates = -(-t.steps // (streams * t.unroll))
        spaces = pure or _spaces(config)
        agent = make_agent(
            spaces.observation_space,
            spaces.action_space,
            net,
            loss(config, updates),
            reward_clip=config.loss.reward_clip,
            popart_step=config.loss.popart_step,
            normalise_observations=config.agent.normalise_observations,
        )
    except (ValueError, TypeError, ModuleNotFoundError, gymnasium.error.Error) as error:
        more = f" (env.kwargs is {config.env.kwargs})" if isinstance(error, TypeError) else ""
        if isinstance(error, ModuleNotFoundError):
            more = parts.way_to(config.env.id.rpartition(":")[0], error)
        raise UserError(f"env.id {config.env.id}: {error}{more}") from error
    try:  # whether the influence fits into memory is known without making it
        jax.eval_shape(lambda key: agent.initial_state(key, t.streams), jax.random.key(0))
    except ValueError as error:
        sizes = f"agent.features {config.agent.features}, agent.method {config.agent.method}"
        raise UserError(f"{sizes}: {error}") from error
    in_order = per_update == a.count  # a segment of every actor
    whole_bank = in_order and (pure is not None or a.engine == "local")  # and none is ever lost
    learns = learner(
        config, agent, updates, streams=streams, in_order=in_order, whole_bank=whole_bank
    )
    return Built(
        agent=agent,
        learner=learns,
        pure=envs.auto_reset(pure) if pure else None,
        observation_space=spaces.observation_space,
        updates=updates,
        updates_per_report=max(1, min(updates, t.report_every // (streams * t.unroll))),
        steps_per_update=streams * t.unroll,
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
    if t.loop != "host" and a.engine == "local" and t.devices != 1:
        raise UserError(
            f"training.devices = {t.devices} is for environments on the host: it needs "
            "training.loop = 'host', or other actors.engine than 'local'"
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


def make_envs(config: Config, copies: int, **more: Any) -> gymnasium.vector.VectorEnv:
    """Copies of a config's environment on the host.

    Args:
      config: names the environment, its arguments and wrappers.
      copies: how many.
      **more: other arguments of `envs.make_vec`.

    Raises:
      UserError: a wrapper is not there, fails, or gives no environment.
    """
    arguments: dict[str, Any] = dict(config.env.kwargs) | more
    if config.env.wrappers:
        arguments["wrappers"] = [
            functools.partial(_wrapped, name, parts.wrapper(name)) for name in config.env.wrappers
        ]
    return envs.make_vec(config.env.id, copies, **arguments)


def _wrapped(
    name: str, wrapper: Callable[[gymnasium.Env], gymnasium.Env], env: gymnasium.Env
) -> gymnasium.Env:
    """`env` in a wrapper, whose errors must not pass for those of the environment."""
    try:
        wrapped = wrapper(env)
    except Exception as error:
        called = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        if isinstance(error, TypeError) and not called:  # it wants other arguments
            raise UserError(
                f"env.wrappers: '{name}' is called with the environment alone ({error}): name a "
                "function of a module of yours that gives it the rest"
            ) from error
        raise UserError(f"env.wrappers: '{name}' raised {in_a_line(error)}") from error
    if not isinstance(wrapped, gymnasium.Env):
        raise UserError(
            f"env.wrappers: '{name}' gave no environment but {type(wrapped).__name__}: it must "
            "return what it wraps the environment in"
        )
    return wrapped


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
        index=index,
        alive=alive,
    )


def make_engine(config: Config, built: Built) -> actors.Engine:
    """What runs a config's actors."""
    a, t, agent = config.actors, config.training, built.agent
    if a.engine == "local":
        return actors.LocalEngine([make_actor(config, k, agent=agent) for k in range(a.count)])
    streams = t.streams // a.count

    def init(key: Array) -> Any:
        return agent.init(key, streams)

    shapes = {
        "played": played_like(agent, built.observation_space, streams=streams, unroll=t.unroll),
        "variables": jax.eval_shape(init, jax.random.key(0)),
    }
    supervisor = actors.Supervisor(a.restarts)
    options = {"ahead": a.ahead, "patience_s": a.patience_s, "supervisor": supervisor}
    make = functools.partial(make_actor, config)
    if a.engine == "ray":
        options |= {"address": a.ray_address, "cpus": a.ray_cpus}
        options |= {"resources": a.ray_resources, "spread": a.ray_placement == "spread"}
        return actors.RayEngine(make, a.count, **shapes, **options)
    return actors.ProcessEngine(make, a.count, **shapes, **options)


def network(config: Config) -> NetworkConfig:
    """The network that a config describes.

    Raises:
      UserError: the pattern of recurrent weights is not known, or does not fit the core.
    """
    a = config.agent
    try:
        cell, (pattern, told) = parts.cell_maker(a), parts.sparsity_of(a)
    except UserError as error:
        raise UserError(f"agent.{error}") from error
    net = NetworkConfig(
        cell=cell,
        features=a.features,
        method=parts.make_method(a.method),
        pattern=pattern,
        shared=a.sparsity.shared,
        encoder=a.encoder,
        last_action=a.last_action,
        last_reward=a.last_reward,
        memory=a.memory,
        dtype=jnp.dtype(a.dtype),
    )
    if pattern is None:
        return net
    try:
        net.core()
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"agent.{told}: {error}") from error
    return net


def loss(config: Config, updates: int) -> Loss:
    """The loss that a config describes.

    Args:
      config: what is trained.
      updates: of the whole training.

    Raises:
      UserError: the config sets a key of another loss.
    """
    c = config.loss
    for name, default in (("impala", ImpalaConfig()), ("ppo", PPOConfig())):
        held = dataclasses.asdict(getattr(c, name))
        others = [k for k, value in dataclasses.asdict(default).items() if held[k] != value]
        if others and c.name != name:
            raise UserError(
                f"loss.{name}.{others[0]} is a key of the loss '{name}', and loss.name is "
                f"'{c.name}': leave it out, or set loss.name to '{name}'"
            )
    fraction = c.final_entropy_cost_fraction
    entropy = way(c.entropy_schedule, c.entropy_cost, updates, final_fraction=fraction)
    common: dict[str, Any] = {
        "discount": c.discount,
        "trace_decay": c.trace_decay,
        "entropy_cost": c.entropy_cost if c.entropy_schedule == "constant" else entropy,
        "value_cost": c.value_cost,
    }
    match c.name:
        case "actor_critic":
            return ActorCriticLoss(**common)
        case "impala":
            return ImpalaLoss(**common, **dataclasses.asdict(c.impala))
        case "ppo":
            return PPOLoss(
                **common,
                ratio_clip=c.ppo.ratio_clip,
                value_clip=c.ppo.value_clip,
                normalise_advantage=c.ppo.normalise_advantage,
            )


def learner(
    config: Config, agent: Agent, updates: int, *, streams: int, in_order: bool, whole_bank: bool
) -> Learner:
    """The learner that a config describes.

    Args:
      config: what is trained.
      agent: who.
      updates: of the whole training.
      streams: of an update.
      in_order: see `make_learner`.
      whole_bank: see `make_learner`.

    Raises:
      UserError: the streams cannot be shared out among the minibatches.
    """
    passes = config.loss.ppo if config.loss.name == "ppo" else PPOConfig(epochs=1)
    if streams % passes.minibatches:
        raise UserError(
            f"the {streams} streams of an update cannot be shared out evenly among "
            f"{passes.minibatches} minibatches: set loss.ppo.minibatches to a divisor of it"
        )
    steps = updates * passes.epochs * passes.minibatches
    return make_learner(
        agent.loss,
        optimizer(config.optimizer, steps),
        prepare=agent.prepare,
        epochs=passes.epochs,
        minibatches=passes.minibatches,
        in_order=in_order,
        whole_bank=whole_bank,
    )
