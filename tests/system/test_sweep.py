"""A sweep from the command: run side by side, gone on with, and told of."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from snaprl.training import cli, cluster, loops, sinks
from snaprl.training.sweeps import command

SWEEP = """
config = "base.toml"
seeds = [0]
title = "A small sweep"
metric = "eval_bits_per_char"
[[run]]
name = "frozen"
model.method = "frozen"
[[run]]
name = "bptt"
"""
BASE = """
[task]
name = "delayed_copy"
kwargs = { delay = 2 }
[model]
cell = "simple"
method = "bptt"
features = 4
[training]
streams = 2
unroll = 4
steps = 400
report_every = 200
checkpoint_every = 200
[evaluation]
steps = 500
"""


@pytest.fixture
def snaprl(capfd):
    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        return (code, *capfd.readouterr())

    return command


@pytest.mark.slow  # each run is a process that starts and compiles
def test_a_sweep_is_run_reported_and_not_run_again(snaprl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "small.toml").write_text(SWEEP)
    code, out, err = snaprl("sweep", "small.toml")
    folder = tmp_path / "runs" / "small"
    assert code == 0, err
    assert out.split() == ["runs/small/report.md", "runs/small/report.html"]
    assert "[2/2]" in err
    for name in ("frozen-0", "bptt-0"):
        assert json.loads((folder / name / "evaluation.json").read_text())["step"] == 400
        assert (folder / name / "curve.png").is_file()
    text = (folder / "report.md").read_text()
    assert text.startswith("# A small sweep\n")
    assert len(re.findall(r"^\| (?:frozen|bptt) \| 1 \| \d\.\d+ \|", text, re.M)) == 2

    before = (folder / "frozen-0" / "metrics.jsonl").read_bytes()
    code, _, err = snaprl("sweep", "small.toml")
    assert (code, "2 runs, 2 of them done" in err) == (0, True)
    assert (folder / "frozen-0" / "metrics.jsonl").read_bytes() == before

    # further: the runs go on where they stood
    (tmp_path / "small.toml").write_text(SWEEP + "training.steps = 600\n")
    code, _, err = snaprl("sweep", "small.toml", "--jobs", 1)
    assert code == 0, err
    assert "2 runs, 1 of them done" in err
    lines = (folder / "bptt-0" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [200, 400, 600]

    # other settings under a name that is taken
    (tmp_path / "small.toml").write_text(SWEEP + "model.features = 5\n")
    code, out, err = snaprl("sweep", "small.toml")
    assert (code, out) == (2, "")
    assert re.match(
        r"snaprl: runs/small/bptt-0 holds a run with model.features = 4, not 5: remove", err
    )

    code, out, _ = snaprl("report", folder, "--output", tmp_path / "page")
    assert code == 0
    assert (tmp_path / "page" / "report.html").is_file()


def test_what_cannot_be_built_is_said_before_anything_runs(snaprl, tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    sweep = tmp_path / "s.toml"
    sweep.write_text(SWEEP + "model.fan_in = 99\n")
    code, out, err = snaprl("sweep", sweep, "--folder", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert err.startswith("snaprl: run 'bptt': model.fan_in 99")
    sweep.write_text(SWEEP.replace("per_char", "per_chr"))
    code, out, err = snaprl("sweep", sweep, "--folder", tmp_path / "runs")
    sentence = "snaprl: no run measures metric = 'eval_bits_per_chr': did you mean 'eval_bits_per_"
    assert (code, out, err.startswith(sentence)) == (2, "", True), err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_does_not_keep_the_others_from_running(snaprl, tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    sweep = tmp_path / "s.toml"
    text = SWEEP.replace("eval_bits_per_char", "bits_per_chr") + "optimizer.learning_rate = 3e38\n"
    sweep.write_text(text + "optimizer.name = 'sgd'\noptimizer.max_grad_norm = 3e38\n")
    code, _, err = snaprl("sweep", sweep, "--folder", tmp_path / "runs", "--jobs", 2)
    assert code == 1
    assert re.search(r"bptt, seed 0: failed, snaprl: training stopped, for .* became NaN", err), err
    assert "frozen, seed 0: done in" in err
    assert "frozen reports no metric = 'bits_per_chr': did you mean 'bits_per_char'" in err
    assert "Not there yet: bptt, seed 0" in (tmp_path / "runs" / "report.md").read_text()


# ---- interrupted -----------------------------------------------------------------------------

# a sweep of three runs that do nothing: the second argument says how they do it
STANDS_IN = """
import sys
from pathlib import Path
from snaprl.training.sweeps import command, processes
from snaprl.training.sweeps.plan import Job
processes.WORKER = [sys.executable, "-c", sys.argv[2]]
folder = Path(sys.argv[1])
jobs = [Job(name, name, 0, None, folder / name) for name in "abc"]
with command.alone(folder), processes.left_by_signals(), processes.Workers(2, folder) as workers:
    list(workers.run(jobs))
"""
IDLE = """
import signal, sys, time
from snaprl.training.sweeps import worker
def work(*_):
    print("at work", flush=True)
    time.sleep(600)
worker._work = work
"""
WILLING = f"{IDLE}\nsys.exit(worker.main())"
DEAF = f"""
{IDLE}
worker.GOODBYE_S = 0.2
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker.main()
"""


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until_s, "it does not come to pass"
        time.sleep(0.05)


def is_over(sweep: subprocess.Popen) -> bool:
    """Whether nobody is left who could read what the sweep and its workers share."""
    try:
        os.write(sweep.stdin.fileno(), b".")
    except BrokenPipeError:
        return True
    return False


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes in groups of their own, as a terminal does."""
    begun: list[subprocess.Popen] = []

    def start(*command: object) -> subprocess.Popen:
        words = [sys.executable, *map(str, command)]
        begun.append(subprocess.Popen(words, start_new_session=True, stdin=subprocess.PIPE))
        return begun[-1]

    yield start
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def idle(begin, tmp_path):
    """Starts a sweep that stands in for others, and waits until two of its runs are at work."""

    def start(how: str = WILLING) -> subprocess.Popen:
        sweep = begin("-c", STANDS_IN, tmp_path, how)
        logs = [tmp_path / name / "log.txt" for name in "ab"]
        wait_for(lambda: all(log.is_file() and "at work" in log.read_text() for log in logs), 60)
        return sweep

    return start


def test_a_folder_takes_one_sweep_at_a_time(idle, snaprl, tmp_path, monkeypatch):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "s.toml").write_text(SWEEP)
    monkeypatch.setattr(loops, "prepare", lambda config: pytest.fail("it was built"))
    sweep = idle()
    code, out, err = snaprl("sweep", tmp_path / "s.toml", "--folder", tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        f"snaprl: another sweep works in {tmp_path}: let it end, or sweep into another --folder\n"
    )
    sweep.kill()
    sweep.wait()
    assert (tmp_path / command.LOCK).exists()
    with command.alone(tmp_path):
        pass


ENDINGS = {  # signal, whether the whole group gets it, how the workers are, exit code
    "ctrl-c": (signal.SIGINT, True, WILLING, 130),
    "terminated": (signal.SIGTERM, False, WILLING, 143),
    "busy workers": (signal.SIGTERM, False, DEAF, 143),
    "killed": (signal.SIGKILL, False, DEAF, -9),
}


@pytest.mark.parametrize(("number", "to_all", "how", "code"), ENDINGS.values(), ids=ENDINGS)
def test_a_sweep_that_ends_takes_its_workers_along(idle, tmp_path, number, to_all, how, code):
    sweep = idle(how)
    (os.killpg if to_all else os.kill)(sweep.pid, number)
    assert sweep.wait(20) == code
    wait_for(lambda: is_over(sweep), 20)
    assert not (tmp_path / "c").exists()  # what waited for its turn has not begun


# every update is a report: then there is no report of a part, wherever it is stopped
LONG = """
config = "base.toml"
[all]
training = { steps = 12_000, report_every = 8, checkpoint_every = 2_000 }
[[run]]
name = "short"
training.steps = 16
[[run]]
name = "long"
"""


def told(folder: Path) -> dict[str, list]:
    """What the runs of a sweep reported and measured, without what a clock has put in."""
    found: dict[str, list] = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        rows = [dict(row) for row in sinks.read_rows(path)]
        for row in rows:
            del row["wall_s"], row["steps_per_s"]
        found[path.parent.name] = [*rows, json.loads((path.parent / "evaluation.json").read_text())]
    return found


@pytest.mark.slow  # seven runs start and compile
def test_a_sweep_that_was_interrupted_ends_like_one_that_was_not(snaprl, begin, tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "s.toml").write_text(LONG)
    straight, folder = tmp_path / "straight", tmp_path / "interrupted"
    assert snaprl("sweep", tmp_path / "s.toml", "--folder", straight)[0] == 0

    def reports() -> int:
        rows = folder / "long-0" / "metrics.jsonl"
        return len(rows.read_bytes().splitlines()) if rows.exists() else 0

    short, written_ns = folder / "short-0" / "metrics.jsonl", set()
    words = ["-m", "snaprl.training.cli", "sweep", tmp_path / "s.toml", "--folder", folder]
    for number, send, code in (
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGKILL, os.kill, -9),
    ):
        before = reports()
        sweep = begin(*words, "--jobs", 1)
        wait_for(lambda before=before: reports() > before, 300)
        send(sweep.pid, number)
        assert sweep.wait(20) == code
        wait_for(lambda sweep=sweep: is_over(sweep), 20)
        assert reports() < 1500
        written_ns.add(short.stat().st_mtime_ns)
    assert snaprl("sweep", tmp_path / "s.toml", "--folder", folder)[0] == 0
    assert {short.stat().st_mtime_ns} == written_ns  # done is done
    assert told(folder) == told(straight)


@pytest.fixture
def cluster_here(tmp_path, monkeypatch) -> Iterator[str]:
    """The address of a Ray cluster of this machine alone, with room for two runs."""
    (tmp_path / "ray_bootstrap_config.yaml").write_text("{}")  # or Ray asks the network
    monkeypatch.setenv("HOME", str(tmp_path))
    ray = cluster.import_ray("", "this test", "")  # settles that it is on the loopback address
    try:
        cluster.join(ray, "", "address", "")
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@pytest.mark.slow  # a cluster starts, and four runs
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra")
def test_a_sweep_on_ray(begin, cluster_here, tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "s.toml").write_text(SWEEP + "optimizer = { name = 'sgd', learning_rate = 3e38 }\n")
    (tmp_path / "long.toml").write_text(LONG)
    words = ["-m", "snaprl.training.cli", "sweep", "--ray-address", cluster_here]
    assert cluster_here.startswith("127.0.0.1:")
    assert begin(*words, tmp_path / "s.toml", "--folder", tmp_path / "a").wait(120) == 1
    rows = sinks.read_rows(tmp_path / "a" / "frozen-0" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [200, 400]
    assert "Not there yet: bptt, seed 0" in (tmp_path / "a" / "report.md").read_text()

    # what no machine has room for would wait for ever
    some = subprocess.run(
        [sys.executable, *words, tmp_path / "long.toml", "--ray-cpus", "999"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
    )
    assert some.returncode == 2
    assert "snaprl: --ray-cpus is 999, and the largest machine of the cluster has" in some.stderr

    # interrupted, its runs leave a checkpoint, and nobody works on
    folder = tmp_path / "b"
    sweep = begin(*words, tmp_path / "long.toml", "--folder", folder)
    metrics = folder / "long-0" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, 120)
    os.kill(sweep.pid, signal.SIGINT)
    assert sweep.wait(40) == 130
    at_work = [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(p.info["cmdline"] or ())
    ]
    assert not at_work
    assert list((folder / "long-0" / "checkpoints").iterdir())
    assert sinks.read_rows(metrics)[-1]["step"] < 12_000


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra")
def test_a_cluster_that_is_not_there_is_said_before_anything_runs(tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "s.toml").write_text(SWEEP)
    words = [sys.executable, "-m", "snaprl.training.cli", "sweep", str(tmp_path / "s.toml")]
    words += ["--folder", str(tmp_path / "runs"), "--ray-address", "127.0.0.1:1"]
    # in a process of its own: with an address, Ray is imported to talk to others
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(
        r"snaprl: no Ray cluster answers at --ray-address = '127\.0\.0\.1:1' .*: start one there, "
        r"or leave it out to use the cores of this machine\n$",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--ray-address", "x:1", "--jobs", "2"), "--jobs is for this machine; on Ray --ray-cpus"),
        (("--ray-cpus", "2"), "--ray-cpus is for a Ray cluster: give its --ray-address"),
        *(
            (("--ray-address", "x:1", f"--ray-cpus={cpus}"), f"--ray-cpus is {cpus}: give 0.0001")
            for cpus in ("nan", "inf", "0.0", "-1.0", "1e-05")
        ),
    ],
)
def test_what_a_cluster_is_asked_for_is_looked_at_first(snaprl, tmp_path, flags, sentence):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "s.toml").write_text(SWEEP)
    code, out, err = snaprl("sweep", tmp_path / "s.toml", "--folder", tmp_path / "runs", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"snaprl: {sentence}")
    assert not (tmp_path / "runs").exists()
