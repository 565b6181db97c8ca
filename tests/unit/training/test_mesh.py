"""The learner on several devices: the same numbers, shared work, sums and nothing else sent."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

# Devices are counted before jax starts: what follows runs in a process of its own.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
import flax.linen as nn
from gymnasium import spaces
from snaprl.agents import ActorCriticLoss, NetworkConfig, Segment, make_agent
from snaprl.cores import CoreState, SnAp
from snaprl.training.learner import make_learner
from snaprl.training.mesh import spread

T, M = 4, 5
box, actions = spaces.Box(-1, 1, (M,), np.float32), spaces.Discrete(3)
net = NetworkConfig(features=16, method=SnAp(order=1), last_action=False, last_reward=False)
agent = make_agent(box, actions, net, ActorCriticLoss())

def segment(streams, number):
    rng = np.random.default_rng(number)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return Segment(
        observation={"observation": draw(T + 1, streams, M)},
        first=rng.random((T + 1, streams)) < 0.2,
        action=rng.integers(0, 3, (T, streams)).astype(np.int32), reward=draw(T, streams),
        discount=np.ones((T, streams), np.float32), mask=np.ones((T, streams), np.float32),
        behaviour_log_prob=draw(T, streams), hidden=np.zeros((streams, 16), np.float32),
        stream=np.arange(streams, dtype=np.int32), number=np.full(streams, number, np.int32))

def run(devices, streams, whole_bank):
    mesh = spread(devices, streams)
    learner = mesh.learner(make_learner(agent.loss, optax.adam(1e-2), whole_bank=whole_bank))
    key = jax.random.key(0)
    state = mesh.keep(learner.init(agent.init(key, streams), agent.initial_state(key, streams)))
    update = jax.jit(learner.update, donate_argnums=0)
    losses = []
    for number in range(3):
        state, metrics = update(state, mesh.put(segment(streams, number)))
        losses.append(float(metrics["loss"]))
    compiled = update.lower(state, mesh.put(segment(streams, 3))).compile()
    cost = compiled.cost_analysis()
    placed = [len(x.sharding.device_set) for x in jax.tree.leaves(state.bank.influence)]
    whole = [x.sharding.is_fully_replicated for x in jax.tree.leaves(state.bank.influence)]
    params = [np.asarray(x).tolist() for x in jax.tree.leaves(state.variables["params"])]
    return {"losses": losses, "params": params, "flops": cost["flops"], "placed": placed,
            "whole": whole, "compiled": update._cache_size(), "text": compiled.as_text()}

found = {"same": [run(d, 8, True) for d in (1, 8)], "partial": [run(d, 8, False) for d in (1, 8)],
         "scaled": {d: run(d, 4 * d, True) for d in (2, 4, 8)}}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["same", "partial"])
def test_eight_devices_compute_what_one_computes(found, kind):
    one, eight = found[kind]
    assert one["losses"] == pytest.approx(eight["losses"], rel=1e-4)
    for a, b in zip(one["params"], eight["params"], strict=True):
        assert np.array(a) == pytest.approx(np.array(b), abs=2e-4)
    assert eight["compiled"] == 1
    assert set(eight["placed"]) == {8}
    assert not any(eight["whole"])


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
    params = sum(np.size(p) for p in found["same"][0]["params"])
    for run in found["scaled"].values():
        summed = bytes_of(run["text"], "all-reduce")
        # the core's gradient is two sums, (12): within the segment, and through what was before;
        # besides there are a few numbers of the loss
        assert 0 < summed <= 2 * 4 * params + 256
        for other in ("all-gather", "all-to-all", "collective-permute"):
            assert bytes_of(run["text"], other) == 0, other
