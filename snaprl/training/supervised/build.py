"""From a supervised config to what it describes: task, model, learner, loop."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from snaprl.training import parts
from snaprl.training.errors import UserError
from snaprl.training.learner import Learner, make_learner
from snaprl.training.optimizers import learning_rate
from snaprl.training.supervised.loop import SupervisedLoop
from snaprl.training.supervised.loss import make_loss
from snaprl.training.supervised.model import SequenceModel
from snaprl.training.supervised.registry import make_task
from snaprl.training.supervised.schema import SupervisedConfig, SupervisedOptimizerConfig
from snaprl.training.supervised.types import Symbols, Task
from snaprl.training.updates import most_at_once


class SupervisedBuilt(NamedTuple):
    """What a config describes."""

    task: Task
    model: SequenceModel
    learner: Learner
    updates: int  # of the whole training
    updates_per_report: int
    steps_per_update: int  # tokens

    @property
    def facts(self) -> Mapping[str, str]:
        """What a checkpoint belongs to besides its config."""
        return self.task.facts


def build(config: SupervisedConfig) -> SupervisedBuilt:
    """Builds task, model and learner.

    Raises:
      UserError: an argument of the task, the model or the optimiser does not fit, or what the task
        reads is not there.
    """
    t = config.training
    task = make_task(config.task.name, config.task.kwargs)
    if task.length is not None and task.length < t.unroll:
        raise UserError(
            f"training.unroll is {t.unroll}, but the task {config.task.name} has "
            f"{task.length} steps to read: give it a longer text, or a shorter unroll"
        )
    model = make_model(config, task)
    steps_per_update = t.streams * t.unroll
    updates = -(-t.steps // steps_per_update)
    return SupervisedBuilt(
        task=task,
        model=model,
        learner=make_learner(
            make_loss(model), optimizer(config.optimizer, updates, config.seed), whole_bank=True
        ),
        updates=updates,
        updates_per_report=max(1, min(updates, t.report_every // steps_per_update)),
        steps_per_update=steps_per_update,
    )


def make_model(config: SupervisedConfig, task: Task) -> SequenceModel:
    """The network that a config describes for a task.

    Raises:
      UserError: the sentence says which keys do not go together.
    """
    m = config.model
    if m.embedding and not isinstance(task.inputs, Symbols):
        raise UserError(
            f"model.embedding is {m.embedding}, but the task {config.task.name} reads numbers, not "
            "symbols: leave it out"
        )
    if m.input_fan_in and m.cell in parts.COMPRESSED:
        raise UserError(
            f"model.input_fan_in {m.input_fan_in}: the cell '{m.cell}' reads all of its inputs, so "
            "leave it out"
        )
    try:
        cell, (pattern, told) = parts.cell_maker(m), parts.sparsity_of(m)
    except UserError as error:
        raise UserError(f"model.{error}") from error
    model = SequenceModel(
        inputs=task.inputs,
        targets=task.targets,
        cell=cell,
        features=m.features,
        layers=m.layers,
        method=parts.make_method(m.method),
        pattern=pattern,
        shared=m.sparsity.shared,
        input_fan_in=m.input_fan_in,
        embedding=m.embedding,
        readout=m.readout,
        mask_seed=config.seed,
    )
    try:
        model.make_core()
    except (TypeError, ValueError, ImportError) as error:
        also = f"input_fan_in {m.input_fan_in}" if m.input_fan_in else ""
        raise UserError(f"model.{', '.join(filter(None, (told, also)))}: {error}") from error
    streams = config.training.streams
    try:  # whether the influence fits into memory is known without making it
        jax.eval_shape(lambda key: model.initial_state(key, streams), jax.random.key(0))
    except ValueError as error:
        raise UserError(f"model.features {m.features}, model.method {m.method}: {error}") from error
    return model


def make_loop(config: SupervisedConfig, built: SupervisedBuilt) -> SupervisedLoop:
    """The loop over what was built."""
    return SupervisedLoop(
        built.model,
        built.learner,
        built.task,
        streams=config.training.streams,
        unroll=config.training.unroll,
        updates_per_chunk=most_at_once(built.updates_per_report),
    )


def optimizer(
    config: SupervisedOptimizerConfig, updates: int, seed: int
) -> optax.GradientTransformation:
    """Clipping by the global norm, noise, and then any optimiser of optax.

    Noise of variance `gradient_noise^2 / (1 + update)^decay`: Neelakantan et al., 2015, "Adding
    gradient noise improves learning for very deep networks" (arXiv 1511.06807).

    Raises:
      UserError: the optimiser does not take one of the arguments, or not such a value.
    """
    make: Any = getattr(optax, config.name)
    kwargs: dict[str, Any] = dict(config.kwargs)
    known = set(inspect.signature(make).parameters) - {"learning_rate"}
    for name in kwargs:
        if name not in known:
            raise UserError(
                f"optimizer.kwargs: optax.{config.name} takes no '{name}', but "
                f"{', '.join(sorted(known))}"
            )
    chain = [optax.clip_by_global_norm(config.max_grad_norm)]
    if config.gradient_noise:
        variance = config.gradient_noise**2
        chain.append(optax.add_noise(variance, config.gradient_noise_decay, seed))
    try:
        chain.append(make(learning_rate(config, updates), **kwargs))
        rule = optax.chain(*chain)
        jax.eval_shape(_tried(rule), {"w": jnp.zeros((2, 2))})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"optimizer.kwargs: optax.{config.name} takes no {kwargs}: {error}"
        ) from error
    return rule


def _tried(rule: optax.GradientTransformation) -> Callable[[Any], Any]:
    """One update: some arguments fail there only."""
    return lambda params: rule.update(params, rule.init(params), params)[0]
