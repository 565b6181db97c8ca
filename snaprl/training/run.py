"""A run: a folder in which a config becomes a trained agent."""

import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from snaprl.training import meters, provenance, runs, sinks
from snaprl.training.checkpoints import Checkpoints, tell_of_damage
from snaprl.training.config import AnyConfig, check, dumps
from snaprl.training.errors import Stopped, UserError
from snaprl.training.loops import prepare, shapes
from snaprl.training.measure import NO_SCORE, make_measure, score
from snaprl.training.progress import Progress
from snaprl.training.resume import check_same_network, differing, held
from snaprl.training.supervised.schema import SupervisedConfig
from snaprl.training.updates import until_report

PyTree = Any
LAST, BEST = "checkpoints", "best"  # folders of checkpoints
STARTED = "started from"  # in versions.json: the run whose parameters were the first ones
APART = 2**32 - 1  # no step of training


class Run:
    """Trains what a config describes, in a folder of its own.

    The folder holds `config.toml`, `metrics.jsonl`, `checkpoints/`, TensorBoard's events and
    `versions.json`. The learning curve is drawn by `snaprl.training.plot.plot([folder])`, as
    `snaprl train` does at the end.

    Attributes:
      stopped: whether `train` was asked to stop before its steps were done.
    """

    def __init__(
        self,
        config: AnyConfig,
        folder: str | Path,
        *,
        name: str = "",
        resume: bool = False,
        base: AnyConfig | None = None,
        start: str | Path | None = None,
    ):
        """Builds everything, and writes nothing before all of it is known to be sound.

        Args:
          config: what to train.
          folder: the run's.
          name: of the config, for people; by default the folder's.
          resume: go on with the run that the folder holds; `resumed_config` gives its config.
          base: what the config was before flags changed it, so that the run can be told to be of
            that file when it goes on.
          start: a run whose last checkpoint gives the parameters to begin with, in the place of
            drawn ones; optimiser, streams and steps begin anew.

        Raises:
          UserError: the config has a wrong value, or describes what cannot be built; or the folder
            holds a run already, or none to go on with; or `start` is of another network.
        """
        config, folder = check(config), Path(folder)
        self.config, self.folder, self.name = config, folder, name or folder.name
        if resume and start:
            raise UserError(f"{folder} goes on from its own checkpoint: give no other run to it")
        told = {"flags": " ".join(differing(base, config))} if base else {}
        told |= {STARTED: str(Path(start).resolve())} if start else {}
        (runs.check_resumable if resume else runs.check_new)(folder)
        self._built, self._loop = prepare(config)
        self._checkpoints = Checkpoints(folder / LAST, config.training.keep_checkpoints)
        self._best, self._best_score = Checkpoints(folder / BEST, keep=1), NO_SCORE
        each = None if isinstance(config, SupervisedConfig) else config.evaluation.episodes_each
        self._measure = make_measure(config, self._built, each)
        self._resume = resume
        self._provenance = provenance.now(self.name) | told | dict(self._built.facts)
        self._evaluated_at = 0  # the step of the last evaluation
        self.stopped = False

    def train(self) -> dict[str, float]:
        """Trains until the config's steps are done, or until it is interrupted.

        Returns:
          The last report.

        Raises:
          UserError: the loss is no longer finite, or a file cannot be written.
        """
        with self._closing():
            return self._train()

    def _train(self) -> dict[str, float]:
        built, loop = self._built, self._loop
        state, update, told = self._begin()
        total = built.updates * built.steps_per_update
        step = saved = update * built.steps_per_update
        with _interruptible() as stop, self._sinks(step, stop) as sink:
            begin_s = time.monotonic() - told
            report: dict[str, float] = {"step": step}
            due = _next(step, self.config.training.checkpoint_every)
            evaluation_due = _next(self._evaluated_at, self.config.evaluation.every)
            title = f"{self.name}, seed {self.config.seed}"
            failure = None
            with Progress(total, title, step, waiting=_waiting(self.config)) as progress:
                while update < built.updates and not stop and not failure:
                    start_s = time.monotonic()
                    count = until_report(update, built.updates, built.updates_per_report)
                    state, chunk = self._run(state, count, lambda: bool(stop))
                    failure = chunk.failure
                    if not chunk.updates:
                        break
                    count = chunk.updates
                    self._check(chunk, update)
                    update += count
                    step = update * built.steps_per_update
                    now_s = time.monotonic()
                    report = {"step": step, "wall_s": now_s - begin_s}
                    report |= meters.report(chunk, knows_success=loop.knows_success)
                    report |= meters.density(state.learner.variables)
                    report["steps_per_s"] = count * built.steps_per_update / (now_s - start_s)
                    if step >= evaluation_due and not failure:
                        report |= self._evaluated(state, report, lambda: bool(stop))
                        evaluation_due = _next(self._evaluated_at, self.config.evaluation.every)
                    sink.write(report)
                    progress.report(report)
                    self._checkpoints.check()
                    if step >= due:
                        self._checkpoints.save(step, state)
                        saved, due = step, _next(step, self.config.training.checkpoint_every)
            # here, for the wish to stop may come at any moment
            if step > saved:
                self._checkpoints.save(step, state)
            if failure:
                raise UserError(f"training stopped, for {failure}; {self._kept()}") from failure
        self.stopped = bool(stop)
        if stop:
            print(f"snaprl: stopped at step {step}; go on with --resume", file=sys.stderr)
        elif "wall_s" not in report:
            print("there was nothing left to train; --steps N goes further")
        return report

    def _evaluated(
        self, state: PyTree, report: dict[str, float], stop: Callable[[], bool]
    ) -> dict[str, float]:
        """What an evaluation says; the state is kept where none before was as good."""
        step = int(report["step"])
        # a key of its own: training draws what it would draw without
        key = jax.random.fold_in(jax.random.key(self.config.seed), step)
        try:
            found = self._measure(state, key, stop)
        except Stopped:
            return {}
        self._evaluated_at = step
        found.pop("episodes", None)
        if (found_score := score(report | found)) > self._best_score:
            self._best_score = found_score
            self._best.save(step, state)
        return found

    def _begin(self) -> tuple[Any, int, float]:
        """The state to go on from, the updates that it has seen, and the seconds they took."""
        key = jax.random.key(self.config.seed)
        if not self._resume:
            fresh = self._fresh(key, self._provenance.get(STARTED))
            self._write("versions.json", json.dumps(self._provenance, indent=2) + "\n")
            self._write("config.toml", dumps(self.config))
            return fresh, 0, 0.0
        provenance.compare(self.folder, self._built.facts)
        fresh = self._loop.init(key)
        if not self._checkpoints.steps():
            print("snaprl: there is no checkpoint yet, so the run starts again", file=sys.stderr)
            self._best.discard(tuple(self._best.steps()))
            return self._fresh(key, provenance.read(self.folder).get(STARTED)), 0, 0.0
        restored = self._checkpoints.restore(fresh)
        if restored.damaged:
            tell_of_damage(restored)
            self._checkpoints.discard(restored.damaged)
        if not self._loop.exact:
            print(
                f"snaprl: {_unsaved(self.config)} cannot be saved, so episodes start anew"
                f"{_way_to_save(self.config)}",
                file=sys.stderr,
            )
        self._write("config.toml", dumps(self.config))
        rows = sinks.read_rows(self.folder / "metrics.jsonl")
        rows = [row for row in rows if int(row["step"] or 0) <= restored.step]
        self._best.discard(tuple(step for step in self._best.steps() if step > restored.step))
        told = (int(row["step"] or 0) for row in rows if any(k.startswith("eval_") for k in row))
        self._evaluated_at = max(told, default=0)
        if self._best.steps():
            self._best_score = max(map(score, rows), default=NO_SCORE)
        walls = [float(row["wall_s"] or 0) for row in rows]
        update = restored.step // self._built.steps_per_update
        return self._loop.restore(restored.state), update, walls[-1] if walls else 0.0

    def _fresh(self, key: jax.Array, start: str | None) -> Any:
        """The state before the first update, with the parameters of the run `start`, if any."""
        state = self._loop.init(key)
        if start is None:
            return state
        drawn, learnt = state.learner.variables, read(start).state.learner.variables
        check_same_network(drawn, learnt, start)
        variables = jax.tree.map(
            lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), learnt, drawn
        )
        return state._replace(learner=state.learner._replace(variables=variables))

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
    def _sinks(self, step: int, stop: list[bool]) -> Iterator[sinks.Sink]:
        keep = step if self._resume else None
        places: list[sinks.Sink] = [
            sinks.JsonlSink(self.folder / "metrics.jsonl", keep),
            sinks.TensorBoardSink(self.folder / "tensorboard", keep),
        ]
        if self.config.training.wandb:
            project, told = self.config.training.wandb, dataclasses.asdict(self.config)
            name = f"{self.name}-{self.config.seed}"
            places.append(sinks.WandbSink(project, self.folder, name, told, lambda: bool(stop)))
        sink = sinks.Fanout(places)
        try:
            yield sink
        finally:
            sink.close()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            with contextlib.ExitStack() as stack:  # whatever one of them raises
                for held in (self._checkpoints, self._best, self._measure, self._loop):
                    stack.callback(held.close)

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
        """Makes updates; where an environment fails, it also says what is left."""
        try:
            return self._loop.run(state, updates, stop)
        except UserError as error:
            raise UserError(f"training stopped, for {error}; {self._kept()}") from error

    def _kept(self) -> str:
        self._checkpoints.wait()
        kept = self._checkpoints.steps()
        if kept:
            return f"the checkpoint of step {kept[-1]} is kept"
        return f"no checkpoint was written, so nothing is lost with {self.folder}"


def evaluate(
    folder: str | Path, *, episodes: int | None = None, seed: int = 0, best: bool = False
) -> dict[str, float]:
    """Measures a run's last checkpoint: an agent greedily and by drawing actions, a model on tasks.

    Args:
      folder: the run's, which may be going on.
      episodes: how many an agent plays for each; by default the config's `evaluation.episodes`.
      seed: of what is drawn.
      best: take the checkpoint that was best by the evaluations during training.

    Returns:
      `step`; of an agent `episodes`, `eval_...` (the policy as it is, actions drawn) and
      `eval_greedy_...`; of a supervised model what its task measures.
    """
    saved = read(folder, best=best)
    measure = make_measure(saved.config, saved.built, episodes)
    # not the key that training began with: that would draw the episodes that it began with
    result = measure(saved.state, jax.random.fold_in(jax.random.key(seed), APART))
    measure.close()
    return {"step": saved.step} | measure.about(saved.state) | result


class Saved(NamedTuple):
    """A checkpoint, and what it belongs to."""

    config: AnyConfig
    built: Any
    step: int
    state: PyTree


def read(folder: str | Path, *, best: bool = False) -> Saved:
    """Reads a run's last checkpoint, or its best one.

    Raises:
      UserError: there is none.
    """
    folder = Path(folder)
    runs.check_held(folder)
    if best and not (folder / BEST).is_dir():
        raise UserError(
            f"{folder} has no best checkpoint: nothing was evaluated during training; "
            "evaluation.every says how often that is done"
        )
    config = held(folder)
    built, loop = prepare(_on_one_device(config))
    provenance.compare(folder, built.facts)
    checkpoints = Checkpoints(folder / (BEST if best else LAST))
    try:
        restored = checkpoints.restore(shapes(loop))
    finally:
        checkpoints.close()
        loop.close()
    if restored.damaged:
        tell_of_damage(restored)
    return Saved(config, built, restored.step, restored.state)


def _on_one_device(config: AnyConfig) -> AnyConfig:
    """What is only looked at needs no more, wherever it was trained."""
    if isinstance(config, SupervisedConfig):
        return config
    alone = dataclasses.replace(config.training, devices=1, shard_parameters=False)
    return dataclasses.replace(config, training=alone)


def _unsaved(config: AnyConfig) -> str:
    """Who holds what a checkpoint cannot hold."""
    if isinstance(config, SupervisedConfig):
        return config.task.name
    if config.actors.engine != "local":
        return "what actors play on their own"
    return config.env.id


def _way_to_save(config: AnyConfig) -> str:
    """Ends a sentence on what cannot be saved by what would change that."""
    if isinstance(config, SupervisedConfig) or config.actors.engine != "local":
        return ""
    return (
        ": for the next run, give get_state() and set_state() to it and to each of its wrappers "
        "that remembers something"
    )


def _waiting(config: AnyConfig) -> str:
    """What a run waits for before its first report, where that takes more than compiling."""
    if isinstance(config, SupervisedConfig) or config.actors.engine == "local":
        return ""
    return f"{config.actors.count} actors are starting ({config.actors.engine})"


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


def _next(step: int, every: int) -> float:
    """The next multiple of `every`; infinity where it is 0."""
    return (step // every + 1) * every if every else math.inf
