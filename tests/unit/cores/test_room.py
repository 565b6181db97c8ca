"""Room for the masks to come: many of them fit, nothing compiles anew, and no number changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.probe import assert_close
from flax import nnx

import snaprl.cores.nnx
from snaprl.cores import RTRL, Mask, OnlineRNN, SnAp, rewire, sparsity
from snaprl.cores.sparsity import Scope

pytestmark = pytest.mark.usefixtures("x64")

T, B, M, N, FAN_IN = 3, 2, 3, 24, 3
CELL = nn.GRUCell(N, param_dtype=jnp.float64)
TREE = sparsity.mask(CELL, M, sparsity.fixed_fan_in(FAN_IN))
TIED = sparsity.gates(CELL)


def made(method, mask):
    rnn = OnlineRNN(CELL, method, mask=mask)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    return rnn, carry, rnn.init(jax.random.key(1), carry, jnp.zeros((T, B, M)))


@jax.jit
def moved(params, mask, key):
    """A step of SET: a third of every unit's inputs change."""
    return sparsity.rewire_set(params, mask, key, fraction=0.34, scope=Scope.UNIT, tied=TIED)


@pytest.mark.parametrize("method", [SnAp(2), pytest.param(SnAp(3), marks=pytest.mark.slow)])
def test_many_steps_of_rewiring_fit_and_compile_nothing(method):
    rnn, carry, variables = made(method, Mask(TREE, room=1.5))
    traced, first = [], np.asarray(TREE["hr"]["kernel"])

    @jax.jit
    def learn(variables, carry, xs):
        traced.append(xs.shape)

        def loss(params):
            after, ys = rnn.apply({**variables, "params": params}, carry, xs)
            return (ys**2).sum(), after

        return jax.grad(loss, has_aux=True)(variables["params"])

    mask = TREE
    for seed, xs in enumerate(np.random.default_rng(0).normal(size=(25, T, B, M))):
        grads, carry = learn(variables, carry, xs)
        assert np.isfinite(jax.tree.leaves(carry.influence)[0]).all()
        held = jax.tree.map(jnp.subtract, variables["params"]["cell"], grads["cell"])
        new = moved(held, mask, jax.random.key(seed))
        mask = jax.tree.map(np.asarray, new.mask)
        assert (mask["hr"]["kernel"].sum(0) == FAN_IN).all()
        held = {**variables, "params": {"cell": new.params}}
        variables, carry = rewire(rnn, held, mask, (B, M), carry)
    assert len(traced) == 1
    assert (mask["hr"]["kernel"] & first).sum() < first.sum() / 2


def test_without_room_they_do_not_fit_and_the_way_out_is_said():
    rnn, carry, variables = made(SnAp(2), TREE)
    with pytest.raises(
        ValueError, match=r"does not fit .* a larger room in Mask\(mask, room=...\)"
    ):
        for seed in range(30):
            new = moved(variables["params"]["cell"], TREE, jax.random.key(seed))
            rewire(rnn, variables, jax.tree.map(np.asarray, new.mask), (B, M), carry)


@pytest.mark.parametrize(
    "method", [SnAp(2), pytest.param(RTRL(), marks=pytest.mark.slow), SnAp(2, entries=True)]
)
def test_room_changes_no_number(method):
    """Places that are nobody's are 0 and give nothing."""
    xs = np.random.default_rng(1).normal(size=(T, B, M))
    found = []
    for room in (1.0, 1.7):
        rnn, carry, variables = made(method, Mask(TREE, room=room))
        size = sum(leaf.size for leaf in jax.tree.leaves(carry.influence))
        total = None
        for _ in range(2):

            def loss(params, carry=carry, rnn=rnn, variables=variables):
                after, ys = rnn.apply({**variables, "params": params}, carry, xs)
                return (ys**2).sum(), after

            grads, carry = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        found.append((total, size))
    assert_close(found[1][0], found[0][0])
    # pairs of a unit with itself are as many as before; RTRL's are all that there are
    assert found[0][1] <= found[1][1] <= np.ceil(1.7 * found[0][1])
    assert method == RTRL() or found[1][1] > 1.4 * found[0][1]


def test_a_fan_in_that_differs_has_room_too():
    uneven = sparsity.mask(CELL, M, sparsity.uniform(0.1))
    for tree, room in ((TREE, FAN_IN), (uneven, None)):
        most = int(np.asarray(tree["hr"]["kernel"]).sum(0).max())
        _, _, variables = made(SnAp(2), Mask(tree, room=2.0))
        lists = variables["sparsity"]["pattern"].fan_in["hr"]
        assert lists.inputs.shape == (room or 2 * most, N)


def test_room_is_a_part_of_the_mask():
    assert Mask(TREE, room=2.0) != Mask(TREE)
    assert Mask(TREE, room=2.0) == Mask(TREE, room=2.0)
    for room in (0.5, float("nan"), float("inf"), "2", None):
        with pytest.raises(
            ValueError, match=f"room is {room!r}; it must be a number of at least 1"
        ):
            Mask(TREE, room=room)  # type: ignore


def test_nnx_has_as_much_room():
    keep = np.concatenate([TREE["hr"]["kernel"]] * 3, axis=-1)
    sizes = []
    for room in (1.0, 1.5):
        mask = Mask({"dense_h": {"kernel": keep}}, room=room)
        cell = nnx.GRUCell(M, N, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        rnn = snaprl.cores.nnx.OnlineRNN(cell, SnAp(2), mask=mask)
        carry = rnn.initialize_carry((B, M), nnx.Rngs(1))
        carry, _ = rnn(carry, jnp.zeros((T, B, M)))
        sizes.append(carry.influence[0].shape[1])
        linen, _, _ = made(SnAp(2), Mask(TREE, room=room))
        expected = linen.initialize_carry(jax.random.key(0), (B, M)).influence[0]
        assert sizes[-1] == expected.shape[1]
    assert sizes[1] > sizes[0]
