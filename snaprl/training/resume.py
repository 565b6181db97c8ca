"""Which run goes on: what its folder holds, and what of that may be changed."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snaprl.training import provenance, runs
from snaprl.training.config import AnyConfig, absolute, load, read_toml
from snaprl.training.errors import UserError
from snaprl.training.schema import Config
from snaprl.training.supervised.schema import SupervisedConfig

# a run that goes on may be told to go further or to say more, not to be another run
FREE = {"training.steps", "training.report_every", "training.checkpoint_every"}
FREE |= {"actors.restarts", "actors.patience_s", "actors.ray_address", "actors.ray_cpus"}
FREE |= {"actors.ray_resources", "actors.ray_placement"}
FREE |= {"training.devices", "training.shard_parameters"}
FREE |= {"training.keep_checkpoints", "evaluation.episodes", "evaluation.max_steps"}
FREE |= {"evaluation.steps", "evaluation.every", "evaluation.episodes_each"}
FREE |= {"training.wandb"}
WAY_OUT = "leave CONFIG out to go on with the run as it is, or give another --run-dir"


def resumed_config(
    folder: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    made_from: str | Path = "",
) -> AnyConfig:
    """The config of the run that a folder holds, with what is changed.

    Args:
      folder: the run's.
      overrides: as `snaprl.training.config.load` takes them.
      made_from: a config, by its path or name, that the run has to be of; '' for any. It is only
        compared with what the run was made from: its contents, flags aside, not its name.

    Raises:
      UserError: the folder holds no run, or one of another config, or the changes would make it
        another run.
    """
    folder = Path(folder)
    runs.check_resumable(folder)
    before, config = held(folder), held(folder, overrides)
    if made_from:
        _check_made_from(folder, before, made_from)
    for key in differing(before, config):
        if key not in FREE:
            raise UserError(
                f"the run in {folder} was made with {key} = {flat(before).get(key)}, not "
                f"{flat(config).get(key)}: give another --run-dir to train that"
            )
    steps = config.training.steps
    if steps != before.training.steps:
        for what, way in scheduled(config).items():
            print(
                f"snaprl: from here on the {what} follows the {way} schedule of {steps:,} steps, "
                f"not of {before.training.steps:,}",
                file=sys.stderr,
            )
    return config


def scheduled(config: AnyConfig) -> dict[str, str]:
    """What follows the number of steps of a training, and by which schedule."""
    ways = {"learning rate": config.optimizer.schedule}
    if isinstance(config, Config):
        ways["entropy bonus"] = config.loss.entropy_schedule
    return {what: way for what, way in ways.items() if way != "constant"}


def _check_made_from(folder: Path, config: AnyConfig, made_from: str | Path) -> None:
    """Refuses a run that was made from another config, whatever that is called.

    Raises:
      UserError: the sentence names the first key in which they differ.
    """
    other, told = absolute(load(made_from)), provenance.read(folder)
    if "flags" not in told and told.get("config") == Path(made_from).stem:
        return  # nobody knows what flags changed, so the name has to do
    if type(config) is not type(other):
        kinds = {Config: "an agent", SupervisedConfig: "a supervised model"}
        raise UserError(
            f"the run in {folder} trains {kinds[type(config)]}, and {made_from} describes "
            f"{kinds[type(other)]}: {WAY_OUT}"
        )
    ours, theirs = flat(config), flat(other)
    for key in differing(config, other):
        if key in FREE or key in told.get("flags", "").split():
            continue
        raise UserError(
            f"the run in {folder} was made with {key} = {ours[key]}, and {made_from} has "
            f"{theirs[key]}: {WAY_OUT}"
        )


def check_same_network(drawn: Any, learnt: Any, start: str) -> None:
    """Refuses the variables of another network, those that the run `start` has learnt.

    Raises:
      UserError: the sentence names the first leaf that is absent, or of another shape.
    """
    import jax  # here, so that a run that may not go on is refused at once

    ours, theirs = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (drawn, learnt)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (shapes.get(name, "absent") for shapes in (ours, theirs))
        if here != there:
            raise UserError(
                f"{name} is {here} in this config's network, and {there} in {start}: begin with a "
                "run whose network is the same"
            )


def held(folder: Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> AnyConfig:
    """The config that a run has written, with changes.

    Raises:
      UserError: it is not whole; defaults would make it another run's.
    """
    path = folder / "config.toml"
    config, tables = load(path, overrides), read_toml(path)
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict) and name not in tables:
            raise UserError(
                f"{path} is not whole, for it has no [{name}]: put back what the run wrote there"
            )
    return absolute(config)  # as the run wrote its own: the same path, told shorter, is no other


def differing(one: AnyConfig, other: AnyConfig) -> list[str]:
    """The dotted keys in which two configs differ, in order."""
    before, after = flat(one), flat(other)
    absent = object()
    keys = sorted(before.keys() | after.keys())
    return [key for key in keys if before.get(key, absent) != after.get(key, absent)]


def flat(config: AnyConfig) -> dict[str, Any]:
    """A config by dotted key."""
    found: dict[str, Any] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            found |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            found[key] = value
    return found
