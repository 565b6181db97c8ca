"""What is inspected: a core with its parameters and mask, and a stream of what it reads."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores import sparsity
from snaprl.cores.cells import unitwise
from snaprl.training import parts, runs
from snaprl.training.errors import UserError
from snaprl.training.inspection import stream
from snaprl.training.run import read
from snaprl.training.schema import AgentConfig, Config
from snaprl.training.supervised.schema import ModelConfig

Array = jax.Array
PyTree = Any


class Subject(NamedTuple):
    """A core, and what it reads."""

    name: str  # for people
    cell: nn.RNNCellBase
    params: PyTree
    mask: PyTree  # 0/1 leaves; what is missing is dense
    xs: Array  # [T, B, M]
    resets: Array  # [T, B] bool

    @property
    def states(self) -> int:
        """How many numbers the state of a stream has, `U N`."""
        carry = self.cell.initialize_carry(jax.random.key(0), (1, self.xs.shape[-1]))
        return sum(leaf.size for leaf in jax.tree.leaves(carry))


def random(
    cell_name: str,
    *,
    units: int,
    inputs: int,
    fan_in: int | None,
    gain: float,
    steps: int,
    streams: int,
    seed: int,
) -> Subject:
    """A core as flax draws it, which reads normal noise.

    Where units read few others, recurrent weights are `sqrt(units / fan_in)` times as large, so
    that a unit hears as much as if it read all.

    Raises:
        UserError: There is no such cell, or it has no `fan_in` units to read.
    """
    if cell_name in parts.COMPRESSED:
        dense = cell_name.removeprefix("sparse_")
        raise UserError(f"--cell {cell_name}: its influence is that of --cell {dense} --fan-in K")
    make: Any = parts.cell_class(cell_name)
    cell = make(units)
    recurrent = unitwise(cell).recurrent
    mask = {}
    if fan_in:
        if not recurrent:
            raise UserError(f"--fan-in: the units of {cell_name} read no others; leave it out")
        try:  # with the weight from a unit to itself, as runs have it
            kept = sparsity.fixed_fan_in(fan_in, diagonal=True)
            mask = sparsity.mask(cell, inputs, kept, seed=seed)
        except ValueError as error:
            raise UserError(f"--fan-in: {error}") from error
    params_key, xs_key = jax.random.split(jax.random.key(seed))
    xs = jax.random.normal(xs_key, (steps, streams, inputs))
    carry = cell.initialize_carry(params_key, xs.shape[1:])
    params = jax.jit(cell.init)(params_key, carry, xs[0])["params"]
    for name in recurrent:
        kernel = params[name]["kernel"] * gain * np.sqrt(units / (fan_in or units))
        params = params | {name: params[name] | {"kernel": kernel}}
    words = [runs.CELL_WORDS.get(cell_name, cell_name), f"{units} units", f"{inputs} inputs"]
    words += [f"fan-in {fan_in}"] if fan_in else []
    words += [f"gain {gain:g}"] if gain != 1 else []
    resets = jnp.zeros(xs.shape[:2], bool)
    return Subject(", ".join(words), cell, params, mask, xs, resets)


def of_run(folder: Path, *, steps: int, streams: int, seed: int) -> Subject:
    """The core of a run's last checkpoint, which reads what its policy comes to see, or its task.

    Raises:
        UserError: The folder holds no run with a checkpoint, or its core is not one cell.
    """
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} is no run: there is no config.toml in it")
    saved = read(folder)
    config, variables = saved.config, saved.state.learner.variables
    key, settings = jax.random.key(seed), runs.read(folder).settings
    if isinstance(config, Config):
        core: AgentConfig | ModelConfig = config.agent
        cell, params, mask = _core(core, variables, folder)
        xs, resets = stream.seen(
            config, saved.built, variables, steps=steps, streams=streams, key=key
        )
        named = [*sorted(runs.environment(settings)), "agent.cell"]
    else:
        core = config.model
        cell, params, mask = _core(core, variables, folder)
        task = saved.built.task
        data = jax.tree.map(jnp.asarray, task.data)
        places = task.init(data, key, streams)
        _, piece = task.draw(data, places, saved.state.shared, steps)
        xs = saved.built.model.apply(variables, piece.inputs, method="encode")
        resets = piece.first
        named = ["task.name", "model.cell"]
    words = [runs.label(settings, named), f"{core.features} units"]
    words += [f"fan-in {core.fan_in}"] if core.fan_in else []
    words += [core.sparsity.name] if core.sparsity.name != "dense" else []
    return Subject(", ".join(words), cell, params, mask, xs, resets)


def _core(
    config: AgentConfig | ModelConfig, variables: PyTree, folder: Path
) -> tuple[nn.RNNCellBase, PyTree, PyTree]:
    """The cell, its parameters in 32 bits, and its mask."""
    held = variables["params"].get("core", {})
    if "cell" not in held:
        raise UserError(f"the core of {folder} is not one cell, so it cannot be inspected")
    cell = parts.cell_maker(config)(config.features)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), dict(held["cell"]))
    mask = variables.get("sparsity", {}).get("core", {}).get("cell", {})
    return cell, params, jax.tree.map(np.asarray, dict(mask))
