"""The command `snaprl`."""

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from snaprl.training import inspection, runs
from snaprl.training.errors import UserError, suggest

FILMED = 3  # episodes of a film
LEAST_CPUS = 0.0001  # that Ray can count
TRAIN_FLAGS = "--run-dir", "--resume", "--from"  # beside those of the config
WHOLE = ("step", "episodes", "parameters")  # numbers that evaluate counts

# Nothing heavy is imported before it is known what is asked for.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    _look_here()
    parser = _parser()
    known, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if rest and known.command is not _train:
            flags = re.findall(r"--[a-z-]+", known.usage)
            raise UserError(f"unknown argument {rest[0]}: {suggest(rest[0], flags)}")
        return known.command(known, rest) or 0
    except UserError as error:
        print(f"snaprl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # where nothing is under way that could be saved
        print("snaprl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _look_here() -> None:
    """Finds modules that a config names in the current folder, as `python -m` does.

    The script `snaprl` has its own folder on the path instead. Actors' processes take over the
    path, Ray looks in the learner's folder, and the workers of sweeps are started by `-m`.
    """
    if sys.flags.safe_path:  # somebody wants none of this
        return
    with contextlib.suppress(FileNotFoundError):  # the folder was removed meanwhile
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="snaprl",
        description="Recurrent policies that learn online, by SnAp.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable, text: str, *, add_help: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, allow_abbrev=False, add_help=add_help
        )
        command.set_defaults(command=run)
        return command

    # its --help is answered by the config, which knows every key
    train = add("train", _train, "train what a config describes", add_help=False)
    train.add_argument("--run-dir", type=Path, help="the run's folder (runs/CONFIG-SEED)")
    train.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    train.add_argument("--from", dest="start", type=Path, help="a run whose parameters come first")

    evaluate = add("evaluate", _evaluate, "measure a trained agent or model; prints JSON")
    evaluate.add_argument("run", type=Path, metavar="RUN")
    evaluate.add_argument("--episodes", type=int, help="how many (the config's)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the episodes (0)")
    evaluate.add_argument(
        "--best", action="store_true", help="the best checkpoint by evaluation, not the last"
    )
    evaluate.add_argument(
        "--video", type=Path, metavar="FILE", help="film episodes instead, as .gif or .mp4"
    )

    plot = add("plot", _plot, "draw the learning curves of runs, as PNG and SVG")
    plot.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    plot.add_argument("--output", type=Path, help="where to; curve in the folder of a single run")
    plot.add_argument("--metric", help="what to draw; success or episode_return where there is one")
    plot.add_argument(
        "--label", action="append", dest="labels", help="name of a run; once for each"
    )
    plot.add_argument("--chance", type=float, help="height of a line to compare with")

    sweep = add("sweep", _sweep, "run a list of differences times seeds, and report on it")
    sweep.add_argument("sweep", metavar="SWEEP", help="a TOML file, or a name in configs/paper/")
    sweep.add_argument("--folder", type=Path, help="where its runs go (runs/SWEEP)")
    sweep.add_argument("--jobs", type=int, help="how many run side by side (one per core)")
    sweep.add_argument("--ray-address", help="a Ray cluster that runs them instead")
    sweep.add_argument("--ray-cpus", type=float, help="cores that Ray keeps for each (1)")

    report = add("report", _report, "write a page on the runs in a folder, as Markdown and HTML")
    report.add_argument("folder", type=Path, metavar="FOLDER")
    report.add_argument("--output", type=Path, help="folder that the page goes to (FOLDER)")

    inspect = add("inspect", _inspect, "draw what a core's influence keeps, and what that costs")
    inspection.add_arguments(inspect)

    add("envs", _envs, "list our environments and their arguments")
    add("tasks", _tasks, "list the supervised tasks and their arguments")

    bench = add("bench", _bench, "measure speed, as ratios against peers in the same run")
    bench.add_argument("what", choices=["core"], nargs="?", default="core")
    bench.add_argument("--rounds", type=int, default=30, help="how often the candidates take turns")
    for command in commands.choices.values():
        command.set_defaults(usage=command.format_usage())
    return parser


def _train(known: argparse.Namespace, rest: list[str]) -> int:
    from snaprl.training import config as configs

    name, flags = config_and_flags(rest)
    if known.resume and known.run_dir is None:
        raise UserError("--resume needs --run-dir: which run shall go on?")
    if known.resume:
        from snaprl.training.resume import resumed_config

        config, base, folder = resumed_config(known.run_dir, flags, name), None, known.run_dir
    else:
        if not name:
            names = ", ".join(sorted(configs.shipped()))
            raise UserError(f"name what to train, before its flags: a TOML file or one of {names}")
        prog = f"snaprl train {name} [--run-dir DIR] [--resume] [--from RUN]"
        base = configs.load(name)
        config = configs.absolute(configs.load(name, flags, prog=prog, known_flags=TRAIN_FLAGS))
        folder = known.run_dir or Path("runs") / f"{Path(name).stem}-{config.seed}"
        runs.check_new(folder)
    _prepare_jax()
    from snaprl.training import provenance
    from snaprl.training.plot import plot
    from snaprl.training.run import Run

    title = provenance.read(folder).get("config", "") if known.resume else Path(name).stem
    run = Run(config, folder, name=title, resume=known.resume, base=base, start=known.start)
    report = run.train()
    # who asks a run to stop wants it to stop, and a picture takes seconds
    if not run.stopped and ("wall_s" in report or known.resume):
        try:
            curve = f"curve in {plot([folder])[0]}"
        except UserError as error:  # it is trained all the same
            curve = f"no curve: {error}"
        print(f"{folder}: step {report['step']:,}, {curve}")
    return 0


def config_and_flags(rest: list[str]) -> tuple[str, list[str]]:
    """Takes what `snaprl train` is given apart: CONFIG, '' where there is none, and its flags.

    The parser does not know the config's flags, and would take the value of one for CONFIG.
    """
    named = bool(rest) and not rest[0].startswith("-")
    return (rest[0], rest[1:]) if named else ("", rest)


def _evaluate(known: argparse.Namespace, rest: list[str]) -> None:
    del rest
    if known.episodes is not None and known.episodes < 1:
        raise UserError(f"--episodes is {known.episodes}: give 1 or more")
    runs.check_held(known.run)
    _prepare_jax()
    if known.video:
        from snaprl.training.video import film

        episodes = known.episodes or FILMED
        count = film(known.run, known.video, episodes=episodes, seed=known.seed, best=known.best)
        print(f"{known.video}: {count} frames")
        return
    from snaprl.training.run import evaluate

    found = evaluate(known.run, episodes=known.episodes, seed=known.seed, best=known.best)
    result = {k: int(v) if k in WHOLE else v for k, v in found.items()}
    print(json.dumps(result))
    if not known.best:
        try:
            runs.write_measured(known.run, result)
        except OSError as error:
            print(
                f"snaprl: {runs.MEASURED} cannot be written ({error.strerror}), so a report of "
                f"{known.run} will not have this",
                file=sys.stderr,
            )


def _plot(known: argparse.Namespace, rest: list[str]) -> None:
    del rest
    from snaprl.training.plot import plot

    for path in plot(known.runs, known.output, known.metric, known.labels, known.chance):
        print(path)


def _sweep(known: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from snaprl.training.sweeps import command, plan

    if known.jobs is not None and known.jobs < 1:
        raise UserError(f"--jobs is {known.jobs}: give 1 or more")
    path = plan.find(known.sweep)
    folder = known.folder or Path("runs") / path.stem
    if known.jobs is not None and known.ray_address:
        raise UserError("--jobs is for this machine; on Ray --ray-cpus says how much a run takes")
    if known.ray_cpus is not None and not known.ray_address:
        raise UserError("--ray-cpus is for a Ray cluster: give its --ray-address, or --jobs")
    cpus = 1.0 if known.ray_cpus is None else known.ray_cpus
    if not LEAST_CPUS <= cpus < math.inf:
        raise UserError(f"--ray-cpus is {cpus}: give {LEAST_CPUS} or more")
    jobs = known.jobs or command.cores()
    done = command.sweep(path, folder, jobs, known.ray_address or "", cpus)
    from snaprl.training.sweeps.report import report

    for file in report(folder):
        print(file)
    return 0 if done else 1


def _report(known: argparse.Namespace, rest: list[str]) -> None:
    del rest
    from snaprl.training.sweeps.report import report

    for file in report(known.folder, known.output):
        print(file)


def _inspect(known: argparse.Namespace, rest: list[str]) -> None:
    del rest
    inspection.check(known)
    _prepare_jax()
    inspection.run(known)


def _envs(known: argparse.Namespace, rest: list[str]) -> None:
    del known, rest
    from snaprl.envs import listing

    for entry in listing():
        print(f"{entry.env_id}  {entry.summary}")
        for name, default in entry.arguments.items():
            print(f"    {name} = {default}")
    print(
        "Any other environment that gymnasium knows trains on the host: see configs/cartpole.toml"
    )


def _tasks(known: argparse.Namespace, rest: list[str]) -> None:
    del known, rest
    from snaprl.training.supervised.registry import listing

    for name, summary, arguments in listing():
        print(f"{name}  {summary}")
        for argument, default in arguments.items():
            print(f"    {argument} = {default!r}")


def _bench(known: argparse.Namespace, rest: list[str]) -> None:
    del rest
    if known.rounds < 1:
        raise UserError(f"--rounds is {known.rounds}: give 1 or more")
    from snaprl.training import bench

    bench.show(bench.core(known.rounds))


def _prepare_jax() -> None:
    """Keeps compiled programs from one run to the next."""
    import jax

    from snaprl.training import compile_cache

    jax.config.update("jax_compilation_cache_dir", str(compile_cache.folder()))


if __name__ == "__main__":
    sys.exit(main())
