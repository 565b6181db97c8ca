"""Actors on a Ray cluster of this machine: what they send, and what happens when they fail."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from unit.training.actors.scripted import arguments
from unit.training.actors.test_processes import WAIT_S, gone, weights

from snaprl.training import build, cluster
from snaprl.training import config as configs
from snaprl.training.actors import RayEngine, on_ray
from snaprl.training.errors import UserError
from snaprl.training.schema import TrainingConfig

SMALL = TrainingConfig(unroll=3, steps=64)
# looked for, not imported: that is settled with the first address
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra")


@pytest.fixture(scope="module", autouse=True)
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home that answers what Ray would ask the network for, and our tests on its path."""
    home = tmp_path_factory.mktemp("home")
    (home / "ray_bootstrap_config.yaml").write_text("{}")
    tests = str(Path(__file__).parents[3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("PYTHONPATH", tests)
        yield


@contextlib.contextmanager
def running(faults: dict[int, str], actors: int, **changed: Any) -> Iterator[RayEngine]:
    positional, named = arguments(faults, actors, **changed)
    engine = RayEngine(*positional, **named, cpus=0.5, spread=True)
    try:
        engine.start(0)
        engine.publish(weights(1.0), 0)
        yield engine
    finally:
        engine.close()


def test_actors_play_fail_and_are_replaced():
    """One cluster for all of it: starting one takes seconds."""
    handler = signal.getsignal(signal.SIGTERM)
    told = []
    with running({1: "raises"}, 2) as engine:
        assert signal.getsignal(signal.SIGTERM) is handler
        assert engine._ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
        engine._supervisor._tell = told.append
        seen: dict[tuple[int, int], list[int]] = {}
        pids, rewards = {}, []
        while len(seen.get((1, 1), [])) < 2 or len(seen.get((0, 0), [])) < 8:
            message = engine.receive(WAIT_S)
            if message is None:
                continue
            seen.setdefault((message.actor, message.life), []).append(message.number)
            pids[message.actor] = int(message.played.episodes[1])
            if message.number == 3:
                engine.publish(weights(9.0), 4)
            rewards.append((message.version, float(message.segment.reward[0, 0])))
            message.release()
        for found in seen.values():
            assert found == list(range(len(found)))
        assert set(rewards) == {(0, 1.0), (4, 9.0)}
        assert seen[1, 0] == [0, 1]
        assert "actor 1 failed (ValueError: the floor is lava)" in told[0]

        os.kill(pids[0], signal.SIGKILL)
        while (0, 1) not in seen:
            message = engine.receive(WAIT_S)
            if message is not None:
                seen.setdefault((message.actor, message.life), []).append(message.number)
                message.release()
        assert any(line.startswith("snaprl: actor 0 failed") for line in told)
        assert engine.report()["restarts"] >= 2
    assert all(gone(pid) for pid in pids.values())


def test_an_actor_that_hangs_is_replaced_and_one_that_is_slow_is_not():
    told = []
    with running({0: "is slow", 1: "hangs"}, 2, patience_s=1.0) as engine:
        engine._supervisor._tell = told.append
        seen = []
        while seen.count((0, 0)) < 4 or (1, 1) not in seen:
            message = engine.receive(WAIT_S)
            if message is not None:
                seen.append((message.actor, message.life))
                message.release()
        time.sleep(3.0)  # a learner that compiles: actor 0 has played all that was asked for
        assert 2 <= engine.waiting() <= 4
        for _ in range(4):
            message = engine.receive(WAIT_S)
            if message is not None:
                message.release()
    assert told
    assert all(re.match(r"snaprl: actor 1 gave no sign of life for \d+ s", line) for line in told)


def test_a_cluster_that_is_too_small_is_one_sentence():
    positional, named = arguments({}, 2)
    engine = RayEngine(*positional, **named, cpus=1000.0)
    try:
        with pytest.raises(UserError, match=r"need 2000 cores, and the cluster has \d+"):
            engine.start(0)
    finally:
        engine.close()


def test_a_cluster_that_is_not_there_is_one_sentence():
    positional, named = arguments({}, 1)
    engine = RayEngine(*positional, **named, address="127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster answers .*127\.0\.0\.1:1"):
        engine.start(0)


def test_resources_that_no_machine_has_are_one_sentence():
    positional, named = arguments({}, 2)
    engine = RayEngine(*positional, **named, cpus=0.1, resources={"simulator": 1.0}, spread=True)
    try:
        wanted = r"actors.ray_resources.simulator = 1.0 need 2 of 'simulator', and .* has 0"
        with pytest.raises(UserError, match=wanted):
            engine.start(0)
    finally:
        engine.close()


def test_what_is_rays_own_is_one_sentence():
    positional, named = arguments({}, 2)
    with pytest.raises(UserError, match=r"actors.ray_resources.memory is one of Ray's own"):
        RayEngine(*positional, **named, resources={"memory": 1.0})


def hang(*_: Any, **__: Any) -> None:
    time.sleep(30)


def test_a_store_that_hangs_is_one_sentence(monkeypatch):
    monkeypatch.setattr(on_ray, "STORE_S", 0.2)
    positional, named = arguments({}, 1)
    engine = RayEngine(*positional, **named)
    engine._ray = SimpleNamespace(
        put=hang, cluster_resources=hang, exceptions=engine._ray.exceptions
    )
    with pytest.raises(
        UserError, match=r"Ray's store takes no parameters \(no answer within 0.2 s"
    ):
        engine.publish(weights(1.0), 0)
    with pytest.raises(UserError, match=r"cluster does not say what it has \(no answer within"):
        engine._lacking(1)


def test_a_cluster_that_takes_nobody_in_is_one_sentence(monkeypatch):
    """It listens, but does not speak."""
    monkeypatch.setattr(cluster, "JOIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"reached at {address}: no answer within 0.2 s"):
            cluster.join(SimpleNamespace(init=hang), address, "--ray-address", "do without")


def test_what_is_called_within_a_time_tells_what_the_call_tells():
    assert cluster.within(5.0, lambda: 3) == 3
    for error in (TimeoutError("its own"), ValueError("its own"), KeyboardInterrupt("its own")):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error), match="its own"):
            cluster.within(5.0, fail)


def test_one_that_was_warmed_up_plays_what_another_would():
    """Its streams, from their beginning; what it played for nobody has left no trace."""
    config = replace(configs.load("tmaze_ray"), training=replace(SMALL, streams=4))
    built = build.build(config)
    engine = build.make_engine(config, built)
    assert isinstance(engine, RayEngine)
    packed = np.asarray(engine._pack(built.agent.init(jax.random.key(0), 2)))
    played = []
    for warm in (True, False):
        one = on_ray._Remote(engine._make, engine._played, engine._variables)
        if warm:
            one.warm_up(3, 0 * packed)
        played.append([one.play(1, 7, version, packed) for version in (4, 5)])
    np.testing.assert_array_equal(*played)
    for number, buffer in enumerate(played[0]):
        segment = engine._played.views(buffer).segment
        assert segment.stream.tolist() == [2, 3]
        assert segment.number.tolist() == [number, number]


def test_an_actor_is_given_what_the_config_asks_for():
    given: dict[str, Any] = {}

    class Remote:
        def options(self, **options: Any) -> "Remote":
            given.update(options)
            return self

        def remote(self, *_: Any) -> None: ...

    positional, named = arguments({}, 1)
    needs = {"GPU": 0.5, "simulator": 1.0}
    engine = RayEngine(*positional, **named, cpus=0.25, resources=needs, spread=True)
    engine._ray = SimpleNamespace(remote=lambda **_: lambda _: Remote())
    engine._remote()
    assert (given["num_cpus"], given["num_gpus"]) == (0.25, 0.5)
    assert given["resources"] == {"simulator": 1.0}
    assert given["scheduling_strategy"] == "SPREAD"


def test_a_head_that_falls_silent_is_one_sentence_in_time(monkeypatch):
    """Ray itself would end this process after a minute."""
    monkeypatch.setattr(cluster, "ASK_S", 0.0)
    monkeypatch.setattr(cluster, "LOST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = cluster.Head(f"127.0.0.1:{server.getsockname()[1]}")
        head.check()
    time.sleep(0.3)  # of silence that nobody has listened to
    head.check()  # it may come back
    time.sleep(0.3)
    with pytest.raises(UserError, match=r"head of the Ray cluster, 127\.0\.0\.1:\d+, has not"):
        head.check()
