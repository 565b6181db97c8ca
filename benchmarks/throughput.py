"""Environment steps per second while learning, ours beside Sample Factory's and RLlib's.

CartPole-v1 of gymnasium and a recurrent policy of 64 units, on two cores. One candidate runs at a
time, in processes of its own, and all take turns. Each reports how many environment steps it has
learned from, and when. What lies before its first report, startup and compilation, does not count,
nor does the warm-up after it: what counts is the steps between two reports, `--seconds` apart.

Everybody gets a hidden layer and a core of 64 units, one pass over each batch, and the settings
that proved the fastest of a few for it; they stand below, beside why. Peers live in environments of
their own, since they need other versions of what we need too:

    python -m venv sf && sf/bin/pip install sample-factory==2.1.1
    python -m venv rllib && rllib/bin/pip install "ray[rllib]==2.60.0" torch
    python benchmarks/throughput.py --sample-factory sf/bin/python --rllib rllib/bin/python
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

WARM_UP_S = 10.0  # after the first report
STARTUP_S = 180.0  # in which the first report has to come
PAUSE_S = 5.0  # between two turns, for what was stopped to be gone
REPORTS = "metrics.jsonl"  # as our runs name it: an object a line, with `step` and `wall_s`
ENV_ID, UNITS = "CartPole-v1", 64
SAMPLE_FACTORY, RLLIB = "Sample Factory", "RLlib"
PLAIN = f"{SAMPLE_FACTORY}, single environments"

# ---- ours ---------------------------------------------------------------------------------------

LEARNER = ["--method", "bptt+snap1", "--agent.features", str(UNITS), "--loss.name", "impala"]
# the influence is summed once a segment: long segments cost less a step, and the actor keeps pace
SEGMENT = ["--training.streams", "64", "--training.unroll", "64"]
OURS: dict[str, list[str]] = {
    "snaprl, local": [*SEGMENT, "--engine", "local"],
    # one actor, for the learner takes the other core
    "snaprl, processes": [*SEGMENT, "--engine", "processes", "--actors.count", "1"],
    "snaprl, ray": [*SEGMENT, "--engine", "ray", "--actors.count", "1"],
}


def ours(flags: Sequence[str], folder: Path) -> list[str]:
    """The command as a user types it; without an end, and with a report about every second."""
    endless = ["--steps", str(10**12), "--training.checkpoint-every", str(10**12)]
    told = ["--training.report-every", str(80_000), "--run-dir", str(folder)]
    command = [sys.executable, "-m", "snaprl.training.cli", "train", "cartpole"]
    return [*command, *LEARNER, *flags, *endless, *told]


# ---- peers, which run in this file too, by interpreters of their own ----------------------------


def tell(file: Path, steps: float) -> None:
    """Reports the environment steps that have been learned from."""
    with file.open("a") as reports:
        reports.write(json.dumps({"wall_s": time.monotonic(), "step": steps}) + "\n")


def cartpoles(name: str, cfg: Any = None, env_config: Any = None, render_mode: Any = None) -> Any:
    """gymnasium's own vector of CartPoles, as one environment of many agents."""
    import gymnasium
    import numpy as np
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

    class CartPoles(gymnasium.Env):
        is_multiagent, num_agents, render_mode = True, 64, None

        def __init__(self) -> None:
            self._envs = CartPoleVectorEnv(self.num_agents)
            self.observation_space = self._envs.single_observation_space
            self.action_space = self._envs.single_action_space

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return self._envs.reset(seed=seed)

        def step(self, action: Any) -> Any:
            observation, *rest = self._envs.step(np.asarray(action, np.int64))
            return observation.astype(np.float32), *rest

    return CartPoles()


def plain(name: str, cfg: Any = None, env_config: Any = None, render_mode: Any = None) -> Any:
    """One CartPole, as Sample Factory's own example of it makes one."""
    import gymnasium

    return gymnasium.make(name, render_mode=render_mode)


def sample_factory(file: Path, *, vector: bool = True) -> None:
    """APPO. One worker steps two vectors of 64; or two workers step 16 single environments each."""
    runners, arguments, env_utils, train = (
        importlib.import_module(f"sample_factory.{name}")
        for name in ("algo.runners.runner", "cfg.arguments", "envs.env_utils", "train")
    )

    class Teller(runners.AlgoObserver):
        due_s = 0.0

        def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
            if runner.env_steps and time.monotonic() >= self.due_s:
                tell(file, sum(runner.env_steps.values()))
                self.due_s = time.monotonic() + 0.5

    options = {"env": ENV_ID, "train_dir": file.parent, "device": "cpu", "with_wandb": False}
    options |= {"use_rnn": True, "rnn_type": "gru", "rnn_size": UNITS, "encoder_mlp_layers": UNITS}
    options |= {"rollout": 16, "recurrence": 16, "num_epochs": 1, "worker_num_splits": 2}
    options |= {"batched_sampling": vector, "set_workers_cpu_affinity": False}
    if vector:
        options |= {"num_workers": 1, "num_envs_per_worker": 2, "batch_size": 1024}
    else:
        options |= {"num_workers": 2, "num_envs_per_worker": 16, "batch_size": 512}
    flags = [f"--{name}={value}" for name, value in options.items()]
    env_utils.register_env(ENV_ID, cartpoles if vector else plain)
    parser, _ = arguments.parse_sf_args(flags)
    _, runner = train.make_runner(arguments.parse_full_cfg(parser, flags))
    runner.register_observer(Teller())
    runner.init()
    runner.run()


def rllib(file: Path) -> None:
    """IMPALA on the old API stack."""
    import ray
    from ray.rllib.algorithms.impala import IMPALAConfig

    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=2)
    model = {"fcnet_hiddens": [UNITS], "use_lstm": True, "lstm_cell_size": UNITS, "max_seq_len": 16}
    config: Any = IMPALAConfig().environment(ENV_ID).framework("torch").resources(num_gpus=0)
    config.debugging(log_level="ERROR").api_stack(
        enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
    ).env_runners(
        num_env_runners=1, num_envs_per_env_runner=64, rollout_fragment_length=16
    ).training(train_batch_size=1024, model=model).reporting(min_time_s_per_iteration=1)
    algorithm = config.build_algo()
    while True:
        tell(file, algorithm.train()["num_env_steps_trained"])


PEERS: dict[str, Callable[[Path], None]] = {
    SAMPLE_FACTORY: sample_factory,
    PLAIN: functools.partial(sample_factory, vector=False),
    RLLIB: rllib,
}

# ---- the one who asks ---------------------------------------------------------------------------


class Failed(Exception):
    """A candidate ended or kept silent; the message is the last that it said."""


class Report(NamedTuple):
    """How many environment steps had been learned from when."""

    wall_s: float
    step: float


def read(file: Path) -> list[Report]:
    """The reports so far; the last line may be half written."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [Report(row["wall_s"], row["step"]) for row in rows]


def turn(command: Sequence[str], folder: Path, seconds: float) -> float:
    """Steps per second of one candidate, from when it is warm.

    Raises:
      Failed: it ended, or no report came in time.
    """
    (folder / "ray_bootstrap_config.yaml").write_text("{}\n")  # no questions to a cloud
    private = {"HOME": str(folder), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    private |= {"RAY_USAGE_STATS_ENABLED": "0", "WANDB_MODE": "disabled"}
    begin_s, rows = time.monotonic(), []
    with (folder / "log").open("w+b") as log:
        options = {"stdout": log, "stderr": log, "env": os.environ | private}
        process = subprocess.Popen(command, start_new_session=True, **options)
        try:
            while not rows or rows[-1].wall_s - rows[0].wall_s < WARM_UP_S + seconds:
                time.sleep(0.5)
                rows = read(folder / REPORTS)
                limit_s = STARTUP_S + (2 * (WARM_UP_S + seconds) if rows else 0)
                if process.poll() is not None or time.monotonic() - begin_s > limit_s:
                    raise Failed(last_words(folder / "log"))
        finally:
            end(process)
    first = next(row for row in rows if row.wall_s - rows[0].wall_s >= WARM_UP_S)
    return (rows[-1].step - first.step) / (rows[-1].wall_s - first.wall_s)


def last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200].replace("|", "\\|") if lines else "nothing was said"


def end(process: subprocess.Popen) -> None:
    """Ends a candidate and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show(speeds: Mapping[str, list[float]], said: Mapping[str, str]) -> None:
    """Prints the Markdown table; a ratio is the median of those within a round."""
    print(f"| candidate | steps/s | {' | '.join(f'to {peer}' for peer in PEERS)} |")
    print("|---" * (2 + len(PEERS)) + "|")
    for name in speeds:
        if name in said:
            print(f'| {name} | "{said[name]}" |{" |" * len(PEERS)}')
            continue
        cells = [f"{median(speeds[name]):.0f} ({min(speeds[name]):.0f}-{max(speeds[name]):.0f})"]
        for peer in PEERS:
            known = peer not in said
            pairs = zip(speeds[name], speeds[peer], strict=True) if known else ()
            cells.append(f"{median(a / b for a, b in pairs):.2f}" if known else "")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sample-factory", type=Path, help="an interpreter that has it")
    parser.add_argument("--rllib", type=Path, help="an interpreter that has it")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pythons = {SAMPLE_FACTORY: chosen.sample_factory, PLAIN: chosen.sample_factory}
    pythons[RLLIB] = chosen.rllib
    said = {name: "not asked for" for name, python in pythons.items() if not python}
    speeds: dict[str, list[float]] = {name: [] for name in [*OURS, *PEERS]}
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    for round_, name in itertools.product(range(chosen.rounds), speeds):
        if name in said:
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [str(pythons.get(name)), __file__, "--be", name, folder]
            if name in OURS:
                command = ours(OURS[name], Path(folder))
            try:
                speeds[name].append(turn(command, Path(folder), chosen.seconds))
                print(f"round {round_ + 1}, {name}: {speeds[name][-1]:.0f}", flush=True)
            except Failed as failed:
                said[name] = str(failed)
        time.sleep(PAUSE_S)
    print(f"load {os.getloadavg()[0]:.1f}\n")
    show(speeds, said)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be"]:  # a peer, by its own interpreter
        PEERS[sys.argv[2]](Path(sys.argv[3]) / REPORTS)
    else:
        main()
