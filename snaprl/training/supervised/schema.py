"""What a supervised run is made of: every key of a config with a table `[task]`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from snaprl.training import parts
from snaprl.training.schema import Cost, Count, Fraction, Scalar, SparsityConfig, UpdatesConfig
from snaprl.training.supervised import registry
from snaprl.training.typed import Named, Within


# The comments beside the fields are the words of `snaprl train NAME --help`.
@dataclass(frozen=True)
class TaskConfig:
    """The supervised task."""

    # copy, delayed_copy, adding, parity, delayed_match, anbn, lorenz, mackey_glass, characters
    # or digits; `snaprl tasks` lists them with their arguments
    name: Annotated[str, Named(registry.check_task)] = "copy"
    # arguments of the task: --task.kwargs.KEY VALUE sets one, whether listed here or not
    kwargs: Annotated[dict[str, Scalar], tyro.conf.arg(metavar="[KEY VALUE ...]")] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network, and how its core learns through time."""

    # recurrent cell: simple, gru, mgu, lstm, optimized_lstm, layer_norm_gru, layer_norm_lstm,
    # indrnn, elstm, lru or rtu; sparse_simple, sparse_gru or sparse_lstm, which hold fan_in weights
    # per unit and no more; or one of yours, "module:Class"
    cell: Annotated[str, Named(parts.check_cell)] = "gru"
    # units of the cell
    features: Count = 128
    # cores, one above the other
    layers: Count = 1
    # gradient through time: snap1 (snapN), rtrl, bptt, bptt+snap1, bptt+rtrl, rflo, eprop, uoro,
    # kf_rtrl, ok_rtrl4 (ok_rtrlN) or frozen
    method: Annotated[str, Named(parts.check_method), tyro.conf.arg(aliases=["--method"])] = "snap1"
    # units that a unit reads, drawn once at random; 0 for all
    fan_in: Annotated[int, Within(0)] = 0
    # any other pattern of recurrent weights
    sparsity: SparsityConfig = SparsityConfig()
    # inputs that a unit reads, drawn likewise; 0 for all
    input_fan_in: Annotated[int, Within(0)] = 0
    # width of a learnt embedding of symbols; 0 for one-hot
    embedding: Annotated[int, Within(0)] = 0
    # widths of the hidden ReLU layers between the core and the outputs
    readout: tuple[Count, ...] = ()


@dataclass(frozen=True)
class SupervisedOptimizerConfig(UpdatesConfig):
    """How gradients become updates."""

    # optax's optimiser: adam, adamw, sgd, rmsprop, adagrad, adabelief, nadam, radam, lion, ...
    name: Annotated[str, Named(parts.check_optimizer)] = "adam"
    # its other arguments: --optimizer.kwargs.KEY VALUE sets one, whether listed here or not
    kwargs: Annotated[dict[str, Scalar], tyro.conf.arg(metavar="[KEY VALUE ...]")] = field(
        default_factory=dict
    )
    # standard deviation of the noise that is added to the clipped gradient at the first update
    gradient_noise: Cost = 0.0
    # how it falls: divided by (1 + updates) to the power of half this
    gradient_noise_decay: Fraction = 0.55


@dataclass(frozen=True)
class SupervisedTrainingConfig:
    """How much is trained, in which pieces, and what is told on the way."""

    # tokens, that is time steps, over all streams together
    steps: Annotated[Count, tyro.conf.arg(aliases=["--steps"])] = 1_000_000
    # streams that are read side by side
    streams: Count = 16
    # steps of each stream between two updates
    unroll: Count = 8
    # tokens between two reports
    report_every: Count = 100_000
    # tokens between two checkpoints
    checkpoint_every: Count = 500_000
    # how many of the latest checkpoints are kept
    keep_checkpoints: Count = 3
    # project at Weights & Biases that reports go to as well
    wandb: str = ""


@dataclass(frozen=True)
class SupervisedEvaluationConfig:
    """How a trained model is measured, where the task has no end of its own."""

    # tokens to average over
    steps: Count = 100_000
    # tokens between two evaluations during training, whose best checkpoint is kept; 0 for none
    every: Annotated[int, Within(0)] = 0


@dataclass(frozen=True)
class SupervisedConfig:
    """A supervised run: all that decides what is computed."""

    seed: Annotated[int, Within(0, 2**32 - 1)] = 0  # number from which all randomness comes
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    optimizer: SupervisedOptimizerConfig = SupervisedOptimizerConfig()
    training: SupervisedTrainingConfig = SupervisedTrainingConfig()
    evaluation: SupervisedEvaluationConfig = SupervisedEvaluationConfig()
