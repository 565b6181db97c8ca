"""The learner on several devices: the same numbers, shared work, sums and nothing else sent."""

import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

KINDS = ["ppo", "in order", "impala, any of them", "parted", "sparse"]
# Devices are counted before jax starts: what follows runs in processes of its own.
SETTING = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
import flax.linen as nn
from gymnasium import spaces
from snaprl.agents import (
    ActorCriticLoss, ImpalaLoss, NetworkConfig, PPOLoss, Segment, make_agent)
from snaprl.cores import CoreState, SnAp
from snaprl.cores.sparsity import fixed_fan_in
from snaprl.training.learner import make_learner
from snaprl.training.mesh import spread

T, M = 4, 5
box, actions = spaces.Box(-1, 1, (M,), np.float32), spaces.Discrete(3)
net = NetworkConfig(features=16, method=SnAp(order=1), last_action=False, last_reward=False)
agent = make_agent(box, actions, net, ActorCriticLoss())
pairs = dataclasses.replace(net, method=SnAp(order=2), pattern=fixed_fan_in(4, diagonal=True))
sparse = make_agent(box, actions, pairs, ActorCriticLoss())
impala = make_agent(box, actions, net, ImpalaLoss(), popart_step=1e-2)
ppo = make_agent(box, actions, net, PPOLoss(value_clip=0.2))

def segment(streams, number, bank=0):
    rng = np.random.default_rng(number)
    # of a bank that is larger, whichever come: for most of them segments were lost
    stream = rng.permutation(bank)[:streams] if bank else np.arange(streams)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return Segment(
        observation={"observation": draw(T + 1, streams, M)},
        first=rng.random((T + 1, streams)) < 0.2,
        action=rng.integers(0, 3, (T, streams)).astype(np.int32), reward=draw(T, streams),
        discount=np.ones((T, streams), np.float32), mask=np.ones((T, streams), np.float32),
        behaviour_log_prob=-np.abs(draw(T, streams)),
        hidden=np.zeros((streams, 16), np.float32), stream=stream.astype(np.int32),
        number=np.full(streams, number, np.int32))

"""

PROGRAM = """
def run(devices, streams, parameters=False, agent=agent, bank=0, **options):
    mesh = spread(devices, streams, parameters=parameters)
    learner = make_learner(agent.loss, optax.adam(1e-2), prepare=agent.prepare, **options)
    learner, key, all_ = mesh.learner(learner), jax.random.key(0), bank or streams
    state = mesh.keep(learner.init(agent.init(key, all_), agent.initial_state(key, all_)))
    update, losses = jax.jit(learner.update, donate_argnums=0), []
    compiled = update.lower(state, mesh.put(segment(streams, 0, bank))).compile()
    for number in range(3):  # a state that lies elsewhere than the last one is refused
        state, metrics = compiled(state, mesh.put(segment(streams, number, bank)))
        losses.append(float(metrics["loss"]))
    cost = compiled.cost_analysis()
    placed = [len(x.sharding.device_set) for x in jax.tree.leaves(state.bank.influence)]
    whole = [x.sharding.is_fully_replicated for x in jax.tree.leaves(state.bank.influence)]
    params = [np.asarray(x).tolist() for x in jax.tree.leaves(state.variables["params"])]
    kept = [sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(tree))
            for tree in (state.variables["params"], state.optimizer)]
    return {"losses": losses, "params": params, "flops": cost["flops"], "placed": placed,
            "whole": whole, "text": compiled.as_text(), "kept": kept}

passes = {"epochs": 2, "minibatches": 2}
found = {"ppo": [run(d, 8, agent=ppo, whole_bank=True, **passes) for d in (1, 8)],
         "in order": [run(d, 8, in_order=True) for d in (1, 8)],
         "impala, any of them": [run(d, 8, agent=impala, bank=16) for d in (1, 8)],
         "parted": [run(d, 8, True, in_order=True) for d in (1, 8)],
         "sparse": [run(d, 8, agent=sparse, whole_bank=True) for d in (1, 8)],
         "scaled": {d: run(d, 4 * d, in_order=True) for d in (2, 4, 8)}}
print(json.dumps(found))
"""


# Two hosts that share a learner: each brings the streams of its own device.
BEGIN = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=60)
"""
HOST = """
mesh = spread(0, 8)
learner = mesh.learner(make_learner(agent.loss, optax.adam(1e-2), whole_bank=True))
key = jax.random.key(0)
state = mesh.keep(learner.init(agent.init(key, 8), agent.initial_state(key, 8)))
update = jax.jit(learner.update, donate_argnums=0)
mine = slice(4 * jax.process_index(), 4 * jax.process_index() + 4)
losses = []
for number in range(3):
    whole = segment(8, number)
    rows = {f: getattr(whole, f)[mine] for f in ("hidden", "stream", "number")}
    steps = whole._replace(hidden=(), stream=(), number=())
    part = jax.tree.map(lambda x: x[:, mine], steps)._replace(**rows)
    state, metrics = update(state, mesh.put(part))
    losses.append(float(metrics["loss"]))
params = [np.asarray(x).tolist() for x in jax.tree.leaves(state.variables["params"])]
influence = jax.tree.leaves(state.bank.influence)[0]
local = sum(shard.data.shape[0] for shard in influence.addressable_shards)
print(json.dumps({"losses": losses, "params": params, "devices": jax.device_count(),
                  "streams": [influence.shape[0], local]}))
"""


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def found() -> dict:
    command = [sys.executable, "-c", SETTING + PROGRAM]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_compute_what_one_computes(found, kind):
    one, eight = found[kind]
    assert one["losses"] == pytest.approx(eight["losses"], rel=1e-4)
    for a, b in zip(one["params"], eight["params"], strict=True):
        assert np.array(a) == pytest.approx(np.array(b), abs=2e-4)
    assert set(eight["placed"]) == {8}
    assert not any(eight["whole"])


def test_a_device_keeps_its_part_of_parameters_and_optimiser(found):
    one, eight = found["parted"]
    # what no axis can be shared of is kept whole: biases and heads of a few numbers, counts
    for all_, part in zip(one["kept"], eight["kept"], strict=True):
        assert all_ / 8 <= part <= all_ / 8 + 150
    assert bytes_of(eight["text"], "all-gather") >= 4 * 7 / 8 * one["kept"][0] * 0.8
    assert found["in order"][1]["kept"] == found["in order"][0]["kept"]


def bytes_of(text: str, operation: str) -> int:
    """Bytes of the results of a collective operation, over a compiled program's text."""
    sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "bf16": 2}
    total = 0
    for line in text.splitlines():
        match = re.search(rf"= (.*?) {operation}(?:-start)?\(", line)
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]) if match else []:
            count = 1
            for n in filter(None, shape.split(",")):
                count *= int(n)
            total += sizes.get(kind, 8) * count
    return total


def test_work_per_device_does_not_grow_with_devices(found):
    flops = [run["flops"] for run in found["scaled"].values()]
    assert max(flops) <= 1.02 * min(flops)


def test_gradients_are_all_that_is_sent(found):
    params = sum(np.size(p) for p in found["in order"][0]["params"])
    for run in found["scaled"].values():
        summed = bytes_of(run["text"], "all-reduce")
        # the core's gradient is two sums, (12): within the segment, and through what was before;
        # besides there are a few numbers of the loss
        assert 0 < summed <= 2 * 4 * params + 256
        for other in ("all-gather", "all-to-all", "collective-permute"):
            assert bytes_of(run["text"], other) == 0, other


def test_two_hosts_compute_what_one_computes(found):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    command = [sys.executable, "-c", BEGIN + SETTING + HOST, address]
    hosts = [
        subprocess.Popen(
            [*command, str(k)],
            env=environment(1),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    try:
        said = [host.communicate(timeout=300) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    for host, (_, err) in zip(hosts, said, strict=True):
        assert host.returncode == 0, err[-3000:]
    one, _ = found["in order"]
    for out, _ in said:
        told = json.loads(out.splitlines()[-1])
        assert told["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for a, b in zip(told["params"], one["params"], strict=True):
            assert np.array(a) == pytest.approx(np.array(b), abs=2e-4)
        assert (told["devices"], told["streams"]) == (2, [8, 4])
