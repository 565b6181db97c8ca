"""A run: a folder in which a config becomes a trained agent."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax

from snaprl.training import meters, provenance, sinks
from snaprl.training import schema as schemas
from snaprl.training.actors import ActorLoop
from snaprl.training.build import Built, build, make_engine, make_envs
from snaprl.training.checkpoints import Checkpoints, tell_of_damage
from snaprl.training.config import AnyConfig, dumps, load
from snaprl.training.device_loop import DeviceLoop
from snaprl.training.errors import UserError
from snaprl.training.evaluate import evaluate_on_device, evaluate_on_host
from snaprl.training.host_envs import HostEnvs
from snaprl.training.mesh import spread
from snaprl.training.progress import Progress
from snaprl.training.supervised.schema import SupervisedConfig

PyTree = Any
# a run that goes on may be told to go further or to say more, not to be another run
FREE = {"training.steps", "training.report_every", "training.checkpoint_every"}
FREE |= {"actors.restarts", "actors.patience_s", "actors.ray_address", "actors.ray_cpus"}
FREE |= {"training.keep_checkpoints", "evaluation.episodes", "evaluation.max_steps"}
FREE |= {"evaluation.steps"}
OURS = ("config.toml", "metrics.jsonl", "checkpoints")  # a folder with one of them is no new one


class Loop(Protocol):
    """What trains: an environment, an agent and a learner that go on from a state of their own."""

    exact: bool

    @property
    def knows_success(self) -> bool:
        """Whether the task says which episodes succeed."""
        ...

    def init(self, key: jax.Array) -> PyTree:
        """The state before the first update."""
        ...

    def run(
        self, state: PyTree, updates: int, stop: Callable[[], bool] = ...
    ) -> tuple[PyTree, meters.Chunk]:
        """Makes updates, or fewer where it is asked to stop; `state` is consumed."""
        ...

    def restore(self, state: PyTree) -> PyTree:
        """Goes on from a state that was saved."""
        ...

    def close(self) -> None:
        """Gives back what is held open."""
        ...


class Work(Protocol):
    """How much there is to do."""

    @property
    def updates(self) -> int:
        """Of the whole training."""
        ...

    @property
    def updates_per_report(self) -> int:
        """Between two reports."""
        ...

    @property
    def steps_per_update(self) -> int:
        """Over all streams together."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """What a checkpoint belongs to besides its config, such as a vocabulary."""
        ...


class Run:
    """Trains what a config describes, in a folder of its own.

    The folder holds `config.toml`, `metrics.jsonl`, `checkpoints/`, TensorBoard's events,
    `versions.json`, and at the end `curve.png`.
    """

    def __init__(self, config: AnyConfig, folder: Path, *, name: str, resume: bool = False):
        """Builds everything, and writes nothing before all of it is known to be sound.

        Args:
          config: what to train.
          folder: the run's.
          name: of the config, for people.
          resume: go on with the run that the folder holds.

        Raises:
          UserError: the folder holds a run already, or none to go on with; or the config describes
            what cannot be built.
        """
        self.config, self.folder, self.name = config, folder, name
        if not resume and any((folder / name).exists() for name in OURS):
            raise UserError(
                f"{folder} already holds a run: go on with it by --resume, or give another "
                "--run-dir"
            )
        if resume and not (folder / "config.toml").exists():
            raise UserError(f"{folder} holds no run to resume: leave --resume out to start one")
        self._built, self._loop = prepare(config)
        self._checkpoints = Checkpoints(folder / "checkpoints", config.training.keep_checkpoints)
        self._resume = resume

    def train(self) -> dict[str, float]:
        """Trains until the config's steps are done, or until it is interrupted.

        Returns:
          The last report.

        Raises:
          UserError: the loss is no longer finite, or a file cannot be written.
        """
        built, loop = self._built, self._loop
        state, update, told = self._begin()
        total = built.updates * built.steps_per_update
        step = saved = update * built.steps_per_update
        with self._closing(), _interruptible() as stop, self._sinks(step) as sink:
            begin_s = time.monotonic() - told
            report: dict[str, float] = {"step": step}
            due = _next(step, self.config.training.checkpoint_every)
            with Progress(total, f"{self.name}, seed {self.config.seed}", step) as progress:
                while update < built.updates and not stop:
                    start_s = time.monotonic()
                    count = min(built.updates_per_report, built.updates - update)
                    state, chunk = self._run(state, count, lambda: bool(stop))
                    if not chunk.updates:
                        break
                    count = chunk.updates
                    self._check(chunk, update)
                    update += count
                    step = update * built.steps_per_update
                    now_s = time.monotonic()
                    report = {"step": step, "wall_s": now_s - begin_s}
                    report |= meters.report(chunk, knows_success=loop.knows_success)
                    report["steps_per_s"] = count * built.steps_per_update / (now_s - start_s)
                    sink.write(report)
                    progress.report(report)
                    if step >= due:
                        self._checkpoints.save(step, state)
                        saved, due = step, _next(step, self.config.training.checkpoint_every)
            # here, for the wish to stop may come at any moment
            if step > saved:
                self._checkpoints.save(step, state)
        if stop:
            print(f"snaprl: stopped at step {step}; go on with --resume", file=sys.stderr)
        return report

    def _begin(self) -> tuple[Any, int, float]:
        """The state to go on from, the updates that it has seen, and the seconds they took."""
        key = jax.random.key(self.config.seed)
        if not self._resume:
            versions = provenance.now(self.name) | dict(self._built.facts)
            self._write("versions.json", json.dumps(versions, indent=2) + "\n")
            self._write("config.toml", dumps(self.config))
            return self._loop.init(key), 0, 0.0
        provenance.compare(self.folder, self._built.facts)
        fresh = self._loop.init(key)
        if not self._checkpoints.steps():
            print("snaprl: there is no checkpoint yet, so the run starts again", file=sys.stderr)
            return fresh, 0, 0.0
        restored = self._checkpoints.restore(fresh)
        if restored.damaged:
            tell_of_damage(restored)
            self._checkpoints.discard(restored.damaged)
        if not self._loop.exact:
            print(
                f"snaprl: {_what(self.config)} cannot be saved, so its episodes start anew",
                file=sys.stderr,
            )
        self._write("config.toml", dumps(self.config))
        rows = sinks.read_rows(self.folder / "metrics.jsonl")
        walls = [float(r["wall_s"] or 0) for r in rows if int(r["step"] or 0) <= restored.step]
        update = restored.step // self._built.steps_per_update
        return self._loop.restore(restored.state), update, walls[-1] if walls else 0.0

    def _write(self, name: str, text: str) -> None:
        """Puts a file into the folder, whole or not at all."""
        path = self.folder / name
        new = path.with_name(name + ".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new.write_text(text, encoding="utf-8")
            new.replace(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}): give another --run-dir"
            ) from error

    @contextmanager
    def _sinks(self, step: int) -> Iterator[sinks.Sink]:
        keep = step if self._resume else None
        sink = sinks.Fanout(
            [
                sinks.JsonlSink(self.folder / "metrics.jsonl", keep),
                sinks.TensorBoardSink(self.folder / "tensorboard", keep),
            ]
        )
        try:
            yield sink
        finally:
            sink.close()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._loop.close()
            self._checkpoints.close()

    def _check(self, chunk: meters.Chunk, update: int) -> None:
        steps = self._built.steps_per_update
        try:
            meters.check_finite(chunk, first_update=update, steps_per_update=steps)
        except meters.Divergence as error:
            raise UserError(
                f"training stopped, for {error}; {self._kept()}; a lower optimizer.learning_rate "
                "may help"
            ) from error

    def _run(self, state: PyTree, updates: int, stop: Callable[[], bool]) -> tuple[PyTree, Any]:
        """Makes updates; where actors fail for good, it also says what is left."""
        try:
            return self._loop.run(state, updates, stop)
        except UserError as error:
            raise UserError(f"training stopped, for {error}; {self._kept()}") from error

    def _kept(self) -> str:
        kept = self._checkpoints.steps()
        return f"the checkpoint of step {kept[-1]} is kept" if kept else "none was saved yet"


def prepare(config: AnyConfig) -> tuple[Work, Loop]:
    """Builds what a config describes, and the loop that trains it."""
    if isinstance(config, SupervisedConfig):
        from snaprl.training.supervised import build as supervised

        built = supervised.build(config)
        return built, supervised.make_loop(config, built)
    built = build(config)
    return built, make_loop(config, built)


def make_loop(config: schemas.Config, built: Built) -> Loop:
    """The loop that fits the environment."""
    t = config.training
    if built.pure is not None:
        return DeviceLoop(
            built.agent,
            built.learner,
            built.pure,
            streams=t.streams,
            unroll=t.unroll,
            updates_per_chunk=built.updates_per_report,
        )
    a = config.actors
    learner, places = built.learner, {}
    if t.devices != 1:
        mesh = spread(t.devices, built.steps_per_update // t.unroll)
        learner, places = mesh.learner(learner), {"put": mesh.put, "keep": mesh.keep}
    return ActorLoop(
        built.agent,
        learner,
        make_engine(config, built),
        streams=t.streams,
        unroll=t.unroll,
        actors=a.count,
        per_update=a.per_update or a.count,
        window=a.window,
        **places,
    )


def resumed_config(folder: Path, overrides: list[str], name: str) -> AnyConfig:
    """The config of the run that a folder holds, with what the command line changes.

    Raises:
      UserError: the folder holds no run, or one of another config, or the changes would make it
        another run.
    """
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run to resume: leave --resume out to start one")
    held = load(folder / "config.toml")
    config = load(folder / "config.toml", overrides)
    before, after = (_flat(c) for c in (held, config))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and key not in FREE:
            raise UserError(
                f"the run in {folder} was made with {key} = {before.get(key)}, not "
                f"{after.get(key)}: give another --run-dir to train that"
            )
    made_of = provenance.read(folder).get("config", name)
    if name and made_of != name:
        raise UserError(f"the run in {folder} was made from {made_of}, not from {name}")
    return config


def evaluate(folder: Path, *, episodes: int | None = None, seed: int = 0) -> dict[str, float]:
    """Evaluates a run's last checkpoint, greedily and by drawing actions.

    Args:
      folder: the run's.
      episodes: how many for each; by default the config's `evaluation.episodes`.
      seed: of the episodes.

    Returns:
      `step`, `episodes`, `eval_...` (the policy as it is, actions drawn) and `eval_greedy_...`.
    """
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} is no run: there is no config.toml in it")
    config = load(folder / "config.toml")
    if isinstance(config, SupervisedConfig):
        from snaprl.training.supervised import measure

        return measure.run(config, folder, episodes=episodes, seed=seed)
    built = build(config)
    loop = make_loop(config, built)
    checkpoints = Checkpoints(folder / "checkpoints")
    like = (
        jax.eval_shape(loop.init, jax.random.key(0)) if built.pure else loop.init(jax.random.key(0))
    )
    restored = checkpoints.restore(like)
    loop.close()
    if restored.damaged:
        tell_of_damage(restored)
    variables = restored.state.learner.variables
    count = episodes or config.evaluation.episodes
    result: dict[str, float] = {"step": restored.step}
    for prefix, greedy in (("eval_", False), ("eval_greedy_", True)):
        key = jax.random.key(seed)
        options = {"episodes": count, "greedy": greedy, "max_steps": config.evaluation.max_steps}
        if built.pure is not None:
            numbers = evaluate_on_device(built.agent, built.pure, variables, key, **options)
        else:
            copies = min(config.training.streams, count)
            envs = HostEnvs(make_envs(config, copies))
            numbers = evaluate_on_host(built.agent, envs, variables, key, **options)
            envs.close()
        result["episodes"] = numbers.pop("episodes")
        result |= {prefix + name: value for name, value in numbers.items()}
    checkpoints.close()
    return result


def _what(config: AnyConfig) -> str:
    return config.task.name if isinstance(config, SupervisedConfig) else config.env.id


@contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; the second one stops at once."""
    wish: list[bool] = []
    before = {}

    def ask(signum: int, frame: Any) -> None:
        del frame
        wish.append(True)
        signal.signal(signum, before[signum])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread: whoever runs us handles signals
        pass
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _flat(config: AnyConfig) -> dict[str, Any]:
    import dataclasses

    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    return flat
