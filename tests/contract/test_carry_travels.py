"""A carry goes unchanged, with its influence, wherever programs put it: files and transforms."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from contract import probe

from snaprl.cores import UORO, CoreState, GradientMethod, OnlineRNN, SnAp
from snaprl.cores.sparsity import fixed_fan_in

pytestmark = pytest.mark.usefixtures("x64")

N, M, B, T = 5, 3, 2, 3  # units, inputs, streams, steps of a segment
FAN_IN = {"h": {"kernel": fixed_fan_in(2)((N, N), 1)}}
IN_64: dict[str, Any] = {
    "features": N,
    "param_dtype": jnp.float64,
    "recurrent_kernel_init": nn.initializers.lecun_normal(),  # quicker to compile than flax's own
}
# Each kind of influence: a tree for each state variable, an array of pairs, factors and keys.
ROWS: dict[str, tuple[nn.RNNCellBase, GradientMethod, Any]] = {
    "snap1": (nn.LSTMCell(**IN_64), SnAp(order=1), None),
    "snap2-fan-in": (nn.SimpleCell(**IN_64), SnAp(order=2), FAN_IN),
    "uoro": (nn.SimpleCell(**IN_64), UORO(), None),
}
METHOD = pytest.mark.parametrize("method", ROWS)
# Where the carry stays in its program, one kind stands for the others in the fast suite.
FEWER = pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name == "snap1" else pytest.mark.slow) for name in ROWS],
)


class Segment(NamedTuple):
    xs: Any  # [T, B, M]
    weights: Any  # [T, B, N]  dL/dys: the loss is linear


class Outcome(NamedTuple):
    carry: CoreState  # after the segment
    ys: Any
    params: Any  # gradients
    xs: Any


class Story(NamedTuple):
    """A stream that has seen a segment, and what the next ones give."""

    rnn: OnlineRNN
    variables: Any
    carry: CoreState
    run: Callable  # (variables, carry, segment) -> Outcome
    segments: list[Segment]
    outcomes: list[Outcome]  # of the segments, one after the other


def learner(rnn: Any, wrap: Callable = lambda loss: loss) -> Callable:
    """`(variables, carry, segment) -> Outcome`, not compiled."""

    def run(variables: Any, carry: CoreState, segment: Segment) -> Outcome:
        @wrap
        def loss(params: Any, xs: Any) -> Any:
            after, ys = rnn.apply(variables | {"params": params}, carry, xs)
            return (segment.weights * ys).sum(), (after, ys)

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        grads, (after, ys) = gradient(variables["params"], segment.xs)
        return Outcome(after, ys, *grads)

    return run


@lru_cache
def story(method: str) -> Story:
    cell, kind, mask = ROWS[method]
    rnn = OnlineRNN(cell, kind, mask=mask)
    rng = np.random.default_rng(95)
    before, *segments = (
        Segment(*(rng.normal(size=(T, B, size)) for size in (M, N))) for _ in range(3)
    )
    fresh = rnn.initialize_carry(jax.random.key(0), (B, M))
    variables = jax.jit(rnn.init)(jax.random.key(1), fresh, before.xs)
    run = jax.jit(learner(rnn))
    start = run(variables, fresh, before).carry
    assert all(np.any(leaf) for leaf in jax.tree.leaves(start))
    outcomes, carry = [], start
    for segment in segments:
        outcomes.append(run(variables, carry, segment))
        carry = outcomes[-1].carry
    return Story(rnn, variables, start, run, segments, outcomes)


def together(trees: list[Any]) -> Any:
    """Several trees as one, with an axis in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# ---- files -----------------------------------------------------------------------------------


@METHOD
def test_pickle_keeps_a_carry(method):
    told = story(method)
    kept = pickle.loads(pickle.dumps(told.carry))
    assert isinstance(kept, CoreState)
    probe.assert_close(told.run(told.variables, kept, told.segments[0]), told.outcomes[0], 0.0)


@METHOD
def test_orbax_keeps_a_carry(method, tmp_path):
    told = story(method)
    arrays = jax.tree.map(np.asarray, told.carry)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave(arrays))
        manager.wait_until_finished()
        kept = manager.restore(
            1, args=ocp.args.StandardRestore(jax.tree.map(np.empty_like, arrays))
        )
    assert isinstance(kept, CoreState)
    probe.assert_close(told.run(told.variables, kept, told.segments[0]), told.outcomes[0], 0.0)


# ---- jax's transforms ------------------------------------------------------------------------


@METHOD
def test_a_carry_may_be_donated(method):
    """All of it: the program writes the next carry where this one was."""
    told = story(method)
    given = jax.tree.map(jnp.copy, told.carry)
    run = jax.jit(learner(told.rnn), donate_argnums=1)
    probe.assert_close(run(told.variables, given, told.segments[0]), told.outcomes[0], 0.0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


@METHOD
def test_a_scan_over_segments_is_a_loop(method):
    told, run = story(method), learner(story(method).rnn)

    def body(carry: CoreState, segment: Segment) -> tuple[CoreState, Outcome]:
        outcome = run(told.variables, carry, segment)
        return outcome.carry, outcome

    end, outcomes = jax.lax.scan(body, told.carry, together(told.segments))
    probe.assert_close(outcomes, together(told.outcomes))
    probe.assert_close(end, told.outcomes[-1].carry)


@FEWER
def test_a_rematerialised_loss_has_the_same_gradient(method):
    told = story(method)
    run = jax.jit(learner(told.rnn, jax.checkpoint))
    found = run(told.variables, told.carry, told.segments[0])
    probe.assert_close(found, told.outcomes[0])


@METHOD
def test_vmap_over_sets_of_streams_is_a_loop(method):
    """Both at another place of their streams: no number is that of the other set."""
    told = story(method)
    run = jax.jit(jax.vmap(learner(told.rnn), in_axes=(None, 0, 0)))
    carries = together([told.carry, told.outcomes[0].carry])
    found = run(told.variables, carries, together(told.segments))
    probe.assert_close(found, together(told.outcomes))


# ---- flax's transforms -----------------------------------------------------------------------


class Reader(nn.Module):
    """A module around the layer."""

    method: str

    def setup(self):
        cell, kind, mask = ROWS[self.method]
        self.rnn = OnlineRNN(cell.clone(), kind, mask=mask)

    def __call__(self, carry: CoreState, xs: jax.Array) -> tuple[CoreState, jax.Array]:
        return self.rnn(carry, xs)


def below(variables: Any) -> Any:
    """The variables of a `Reader`, from those of its layer."""
    return {kind: {"rnn": tree} for kind, tree in variables.items()}


@METHOD
def test_a_lifted_scan_over_segments_is_a_loop(method):
    """The gradient of the whole is the sum over segments; `init` makes one set of parameters."""
    told = story(method)
    lifted = nn.scan(
        Reader, variable_broadcast=("params", "sparsity"), split_rngs={"params": False}
    )
    rnn: Any = lifted(method)
    all_of_it = together(told.segments)
    made = jax.eval_shape(rnn.init, jax.random.key(1), told.carry, all_of_it.xs)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, below(told.variables))
    found = jax.jit(learner(rnn))(below(told.variables), told.carry, all_of_it)
    expected = together(told.outcomes)
    probe.assert_close(found.carry, told.outcomes[-1].carry)
    probe.assert_close((found.ys, found.xs), (expected.ys, expected.xs))
    gradient = jax.tree.map(lambda g: g.sum(0), expected.params)
    probe.assert_close(found.params["rnn"], gradient)


def test_a_lifted_scan_that_knows_of_parameters_alone_takes_the_masks_of_the_module():
    told = story("snap2-fan-in")
    lifted = nn.scan(Reader, variable_broadcast="params", split_rngs={"params": False})
    rnn: Any = lifted("snap2-fan-in")
    all_of_it = together(told.segments)
    made = jax.eval_shape(rnn.init, jax.random.key(1), told.carry, all_of_it.xs)
    assert list(made) == ["params"]
    found = jax.jit(rnn.apply)(
        {"params": below(told.variables)["params"]}, told.carry, all_of_it.xs
    )
    probe.assert_close(found, (told.outcomes[-1].carry, together(told.outcomes).ys))


@FEWER
@pytest.mark.parametrize("lift", [nn.jit, pytest.param(nn.remat, marks=pytest.mark.slow)])
def test_a_lifted_layer_is_the_layer(lift, method):
    told = story(method)
    rnn: Any = lift(Reader)(method)
    found = jax.jit(learner(rnn))(below(told.variables), told.carry, told.segments[0])
    expected = told.outcomes[0]
    probe.assert_close(found, expected._replace(params={"rnn": expected.params}))


# ---- devices ---------------------------------------------------------------------------------

DEVICES = Path(__file__).parents[2] / "docs" / "plug.md"  # its own lines do it
# Devices are counted before jax starts: this runs in a process of its own.
SHARDED = """
import json
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from contract.test_carry_travels import DEVICES, ROWS, T, M, N, Segment, learner
from snaprl.cores import OnlineRNN

def laid_out(carry, segment):
    names = {"jax": jax, "np": np, "carry": carry, "xs": segment}
    exec(DEVICES.read_text("utf-8").split("### Several devices")[1].split("```")[1][7:], names)
    return names["carry"], names["xs"]

B = 8
MOVES = ("all-gather", "all-to-all", "collective-permute")  # beside sums over devices
found = {}
for name, (cell, kind, mask) in ROWS.items():
    rnn, rng = OnlineRNN(cell, kind, mask=mask), np.random.default_rng(3)
    segments = [Segment(*(rng.normal(size=(T, B, size)) for size in (M, N))) for _ in range(2)]
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, segments[0].xs)
    run, (shared, _) = jax.jit(learner(rnn)), laid_out(carry, segments[0])
    worst = 0.0
    for segment in segments:
        outcome = run(variables, carry, segment)
        _, part = laid_out((), segment)
        other = run(variables, shared, part)
        carry, shared = outcome.carry, other.carry
        pairs = zip(jax.tree.leaves((outcome.params, outcome.ys, outcome.xs)),
                    jax.tree.leaves((other.params, other.ys, other.xs)))
        worst = max([worst, *(float(jnp.abs(a - np.asarray(b)).max()) for a, b in pairs)])
    text = run.lower(variables, shared, part).compile().as_text()
    leaves = jax.tree.leaves(shared)
    found[name] = {
        "worst": worst,
        "parts": sorted({leaf.addressable_shards[0].data.shape[0] for leaf in leaves}),
        "moved": {name: text.count(f" {name}(") for name in MOVES if f" {name}(" in text},
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sharded() -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@METHOD
def test_streams_may_be_shared_out_over_devices(method, sharded):
    """Each device keeps the influence of its own streams, and none is ever brought together."""
    found = sharded[method]
    assert found["worst"] < 1e-12
    assert found["parts"] == [2]
    assert not found["moved"]
