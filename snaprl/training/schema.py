"""What a run is made of: every key of a config file, its default and the values it may have."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from snaprl.training import parts
from snaprl.training.typed import Named, Within

Scalar = bool | int | float | str
Way = Literal["constant", "linear", "cosine"]

Count = Annotated[int, Within(1)]
Cost = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1)]
Positive = Annotated[float, Within(0, low_included=False)]


# The comments beside the fields are the words of `snaprl train NAME --help`.
@dataclass(frozen=True)
class EnvConfig:
    """The environment."""

    # its name in gymnasium's registry; "module:id" imports the module that registers it
    id: str = "snaprl/TMaze-v0"
    # arguments of the environment: --env.kwargs.KEY VALUE sets one, whether listed here or not
    kwargs: Annotated[dict[str, Scalar], tyro.conf.arg(metavar="[KEY VALUE ...]")] = field(
        default_factory=dict
    )
    # what each copy is wrapped in, first inside: "module:name" of gymnasium wrappers; one that
    # takes arguments gets them in a function of a module of yours, environment in, environment out
    wrappers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SparsityConfig:
    """Which recurrent weights of the core there are."""

    # dense, fixed_fan_in, uniform, block, n_of_m, watts_strogatz or barabasi_albert
    name: Annotated[str, Named(parts.check_pattern)] = "dense"
    # its arguments: a flag ending in sparsity.kwargs.KEY sets one, whether listed here or not
    kwargs: Annotated[dict[str, Scalar], tyro.conf.arg(metavar="[KEY VALUE ...]")] = field(
        default_factory=dict
    )
    # the gates share what is drawn
    shared: bool = True


@dataclass(frozen=True)
class AgentConfig:
    """The network, and how its core learns through time."""

    # recurrent cell: simple, gru, mgu, lstm, optimized_lstm, layer_norm_gru, layer_norm_lstm,
    # indrnn, elstm, lru or rtu; sparse_simple, sparse_gru or sparse_lstm, which hold fan_in weights
    # per unit and no more; or one of yours, "module:Class"
    cell: Annotated[str, Named(parts.check_cell)] = "gru"
    # units of the cell
    features: Count = 64
    # gradient through time: snap1 (snapN), rtrl, bptt, bptt+snap1, bptt+rtrl, rflo, eprop, uoro,
    # kf_rtrl, ok_rtrl4 (ok_rtrlN) or frozen
    method: Annotated[str, Named(parts.check_method), tyro.conf.arg(aliases=["--method"])] = "snap1"
    # units that a unit reads, drawn once at random; 0 for all
    fan_in: Annotated[int, Within(0)] = 0
    # any other pattern of recurrent weights
    sparsity: SparsityConfig = SparsityConfig()
    # widths of the hidden layers between the observation and the core
    encoder: tuple[Count, ...] = ()
    # the core sees the last action
    last_action: bool = True
    # the core sees the last reward
    last_reward: bool = True
    # the core remembers; without, it is reset before every step, to compare with
    memory: bool = True
    # observations are read in units of their standard deviation so far
    normalise_observations: bool = False
    # type of the network's numbers
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class ImpalaConfig:
    """What the loss "impala" has beside the keys of [loss]."""

    # largest probability ratio by which an error of the values counts
    rho_clip: Positive = 1.0
    # largest probability ratio by which an advantage counts
    policy_rho_clip: Positive = 1.0


@dataclass(frozen=True)
class PPOConfig:
    """What the loss "ppo" has beside the keys of [loss]."""

    # passes over a segment, each from the state that was carried to it
    epochs: Count = 4
    # parts of a pass, of whole streams, with a step of the optimiser each
    minibatches: Count = 1
    # how far from 1 a probability ratio may move before it stops to pay
    ratio_clip: Positive = 0.2
    # how far a value may move in its unit before it stops to pay; 0 for any way
    value_clip: Cost = 0.0
    # bring advantages to mean 0 and variance 1
    normalise_advantage: bool = True


@dataclass(frozen=True)
class LossConfig:
    """The loss of the actor-critic."""

    # actor_critic, on lambda-returns; impala, on V-trace; ppo, a clipped surrogate
    name: Literal["actor_critic", "impala", "ppo"] = "actor_critic"
    # how much of a reward is left one step earlier
    discount: Fraction = 0.99
    # lambda of the returns: 0 looks one step ahead, 1 to the segment's end
    trace_decay: Fraction = 0.9
    # weight of the entropy bonus
    entropy_cost: Cost = 0.02
    # the entropy bonus's way to the end of training
    entropy_schedule: Way = "constant"
    # share of the entropy bonus that a schedule leaves at the end
    final_entropy_cost_fraction: Fraction = 0.0
    # weight of the value loss
    value_cost: Cost = 0.5
    # largest size of a reward as it is learned from; 0 for any
    reward_clip: Cost = 0.0
    # how far an update moves the statistics by which PopArt normalises values; 0: it does not
    popart_step: Fraction = 0.0
    # what V-trace alone has
    impala: ImpalaConfig = ImpalaConfig()
    # what PPO alone has
    ppo: PPOConfig = PPOConfig()


@dataclass(frozen=True)
class RatesConfig:
    """Factors on the learning rate, by part of the network; 0 leaves a part as it was drawn."""

    # hidden layers between the observation and the core
    encoder: Cost = 1.0
    # the recurrent core
    core: Cost = 1.0
    # the layer that gives the policy
    policy_head: Cost = 1.0
    # the layer that gives the value
    value_head: Cost = 1.0


@dataclass(frozen=True)
class UpdatesConfig:
    """How gradients become updates, of agents and of supervised models."""

    # learning rate after the warmup
    learning_rate: Positive = 1e-3
    # norm to which longer gradients are clipped
    max_grad_norm: Positive = 1.0
    # the learning rate's way from the warmup to the end of training
    schedule: Way = "constant"
    # share of the training in which the learning rate rises from 0
    warmup_fraction: Fraction = 0.0
    # share of the learning rate that a schedule leaves at the end
    final_learning_rate_fraction: Fraction = 0.0


@dataclass(frozen=True)
class OptimizerConfig(UpdatesConfig):
    """How gradients become updates."""

    # by what the learning rate is multiplied, for parts of the agent
    rates: RatesConfig = RatesConfig()


@dataclass(frozen=True)
class TrainingConfig:
    """How much is trained, in which pieces, and what is told on the way."""

    # environment steps, over all streams together
    steps: Annotated[Count, tyro.conf.arg(aliases=["--steps"])] = 1_000_000
    # environments that run side by side
    streams: Count = 32
    # steps of each stream between two updates
    unroll: Count = 4
    # devices over which the learner spreads the streams, where environments run on the host; 0 for
    # all that there are
    devices: Annotated[int, Within(0)] = 1
    # each device keeps its part of parameters and optimiser only, for networks that are large
    shard_parameters: bool = False
    # where environments run: with the learner on the device, or as gymnasium's on the host
    loop: Literal["auto", "device", "host"] = "auto"
    # environment steps between two reports
    report_every: Count = 100_000
    # environment steps between two checkpoints
    checkpoint_every: Count = 500_000
    # how many of the latest checkpoints are kept
    keep_checkpoints: Count = 3
    # project at Weights & Biases that reports go to as well
    wandb: str = ""


@dataclass(frozen=True)
class ActorsConfig:
    """Who plays where environments run on the host."""

    # where actors run: in this process, in others of this machine, or on a Ray cluster
    engine: Annotated[Literal["local", "processes", "ray"], tyro.conf.arg(aliases=["--engine"])] = (
        "local"
    )
    # actors that share the streams
    count: Count = 1
    # segments, of as many actors, that make an update; 0 for one of every actor
    per_update: Annotated[int, Within(0)] = 0
    # segments that an actor may be ahead of the learner
    ahead: Count = 2
    # segments of an actor that may wait for one that is late, before it is given up
    window: Count = 4
    # seconds without an environment step after which an actor is replaced
    patience_s: Positive = 60.0
    # replacements within an hour after which the run gives up
    restarts: Annotated[int, Within(0)] = 100
    # a Ray cluster; where it is empty, one starts on this machine
    ray_address: str = ""
    # processor cores that Ray keeps for an actor
    ray_cpus: Annotated[float, Within(0)] = 1.0
    # what else Ray keeps for an actor, of resources that machines were started with by --resources
    ray_resources: dict[str, Annotated[float, Within(0)]] = field(default_factory=dict)
    # where Ray puts actors: together where there is room, or spread over the machines
    ray_placement: Literal["together", "spread"] = "together"


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained policy is measured."""

    # episodes to average over
    episodes: Count = 1000
    # steps after which an episode is over for the evaluation, whatever the environment says
    max_steps: Count = 10_000
    # environment steps between two evaluations during training, whose best checkpoint is kept; 0
    # for none
    every: Annotated[int, Within(0)] = 0
    # episodes of each of these
    episodes_each: Count = 100


@dataclass(frozen=True)
class Config:
    """A run: all that decides what is computed."""

    seed: Annotated[int, Within(0, 2**32 - 1)] = 0  # number from which all randomness comes
    env: EnvConfig = EnvConfig()
    agent: AgentConfig = AgentConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    actors: ActorsConfig = ActorsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
