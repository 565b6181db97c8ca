"""`snaprl evaluate` for a supervised run."""

from pathlib import Path

import jax

from snaprl.training import provenance
from snaprl.training.checkpoints import Checkpoints, tell_of_damage
from snaprl.training.errors import UserError
from snaprl.training.supervised.build import build, make_loop
from snaprl.training.supervised.evaluate import evaluate
from snaprl.training.supervised.model import parameter_count
from snaprl.training.supervised.schema import SupervisedConfig


def run(
    config: SupervisedConfig, folder: Path, *, episodes: int | None, seed: int
) -> dict[str, float]:
    """Measures a run's last checkpoint on the task's splits, or on fresh streams."""
    if episodes is not None:
        raise UserError("--episodes is for agents: a task is measured over evaluation.steps")
    built = build(config)
    provenance.compare(folder, built.facts)
    loop = make_loop(config, built)
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(jax.eval_shape(loop.init, jax.random.key(0)))
    checkpoints.close()
    if restored.damaged:
        tell_of_damage(restored)
    state = loop.restore(restored.state)
    variables = state.learner.variables
    steps = config.evaluation.steps
    result = evaluate(built.model, built.task, variables, state.shared, steps=steps, seed=seed)
    told = {name: float(value) for name, value in built.task.told(state.shared).items()}
    references = {f"reference_{k}": v for k, v in built.task.references().items()}
    parameters = parameter_count(variables)
    return {"step": restored.step, "parameters": parameters} | told | result | references
