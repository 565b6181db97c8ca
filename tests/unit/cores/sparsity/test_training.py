"""All of it around `OnlineRNN`: a mask changes while it trains, and nothing compiles anew."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.cores.sparsity import trees

from snaprl.cores import BPTT, OnlineRNN, SnAp, sparsity
from snaprl.cores.sparsity import Scope

T, B, M, N = 5, 3, 4, 16
CELL = nn.GRUCell(N)
MASK = sparsity.mask(CELL, M, sparsity.fixed_fan_in(4), inputs=sparsity.uniform(0.5))
SNAP1 = SnAp(order=1)
TIED = sparsity.gates(CELL)


def set_up(optimiser, method=SNAP1, mask=MASK):
    """A core, its first state, and one update as a compiled function."""
    rnn = OnlineRNN(CELL, method, mask=mask)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, jnp.zeros((T, B, M)))
    variables = jax.tree.map(jnp.asarray, dict(variables))

    def loss(params, mask, carry, xs, targets):
        carry, ys = rnn.apply({"params": params, "sparsity": mask}, carry, xs)
        return jnp.mean((ys - targets) ** 2), carry

    @jax.jit
    def update(params, mask, opt_state, carry, xs, targets):
        grads, carry = jax.grad(loss, has_aux=True)(params, mask, carry, xs, targets)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry

    return rnn, carry, variables, loss, update


def segments(number, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        xs = rng.normal(size=(T, B, M)).astype("f")
        yield xs, np.tanh(np.roll(np.tile(xs, N // M), 1, axis=0))


def assert_sparse(params, mask):
    """Every weight that the mask leaves out is exactly 0, and some that it keeps are not."""
    for path, keep in jax.tree.leaves_with_path(mask):
        value = params
        for part in path:
            value = value[part.key]
        assert not np.asarray(value)[~np.asarray(keep)].any()
        assert np.asarray(value)[np.asarray(keep)].any()


def same(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_rewiring_between_updates_compiles_nothing():
    optimiser = optax.chain(optax.adam(0.01), sparsity.keep_masked({"cell": MASK}))
    _, carry, variables, _, update = set_up(optimiser)
    params, mask = variables["params"], {"cell": variables["sparsity"]["cell"]}
    opt_state = optimiser.init(params)
    rewire = jax.jit(
        lambda params, mask, key: sparsity.rewire_set(
            params, mask, key, fraction=0.3, scope=Scope.UNIT, tied=TIED
        )
    )
    for step, (xs, targets) in enumerate(segments(12)):
        params, opt_state, carry = update(params, mask, opt_state, carry, xs, targets)
        assert_sparse(params, mask)
        if step % 3 == 2:
            rewired = rewire(params, mask, jax.random.key(step))
            assert not same(rewired.mask, mask)
            opt_state = sparsity.reset_moments(opt_state, mask, rewired.mask)
            opt_state = sparsity.with_mask(opt_state, rewired.mask)
            params, mask = rewired
            assert_sparse(params, mask)
    assert trees.programs(update) == trees.programs(rewire) == 1
    for name in ("hr", "hz", "hn"):
        kernel = mask["cell"][name]["kernel"]
        np.testing.assert_array_equal(kernel.sum(axis=0), 4)
        np.testing.assert_array_equal(kernel, mask["cell"]["hr"]["kernel"])
        assert (kernel != MASK[name]["kernel"]).any()


def test_pruning_while_training_compiles_nothing():
    """The mask goes from the optimiser's state into the collection after each update."""
    dense = sparsity.mask(CELL, M, sparsity.uniform(1.0))
    schedule = sparsity.cubic_schedule(0.1, begin=2, end=12, every=2)
    optimiser = optax.chain(
        optax.adamw(0.01), sparsity.magnitude_pruning({"cell": dense}, schedule, tied=TIED)
    )
    _, carry, variables, _, update = set_up(optimiser, mask=dense)
    params, mask = variables["params"], {"cell": variables["sparsity"]["cell"]}
    opt_state = optimiser.init(params)
    densities = []
    for xs, targets in segments(16):
        params, opt_state, carry = update(params, mask, opt_state, carry, xs, targets)
        mask = sparsity.mask_of(opt_state)
        assert_sparse(params, mask)
        densities.append(sparsity.density(mask)["total"])
    assert trees.programs(update) == 1
    expected = [round(float(schedule(step)) * N * N) / (N * N) for step in range(16)]
    assert densities == pytest.approx(expected, abs=1e-6)
    assert densities[0] == 1
    assert densities[-1] == 26 / 256


def test_a_sparse_core_learns():
    """Three in four weights of the recurrence are gone; the loss falls by half all the same."""
    optimiser = optax.chain(optax.adam(0.02), sparsity.keep_masked({"cell": MASK}))
    _, carry, variables, loss, update = set_up(optimiser)
    params, mask = variables["params"], {"cell": variables["sparsity"]["cell"]}
    opt_state = optimiser.init(params)
    (xs, targets), fresh = next(segments(1)), carry
    before, _ = loss(params, mask, fresh, xs, targets)
    for _ in range(200):
        params, opt_state, _ = update(params, mask, opt_state, fresh, xs, targets)
    after, _ = loss(params, mask, fresh, xs, targets)
    assert after < before / 2
    assert_sparse(params, mask)


@pytest.mark.parametrize("method", [SNAP1, BPTT()], ids=["snap1", "bptt"])
def test_the_dense_gradient_for_rigl(method):
    """Absent weights are given the gradient that they would have if they were there, and 0."""
    _, carry, variables, loss, _ = set_up(optax.sgd(0.1), method)
    params, mask = variables["params"], {"cell": variables["sparsity"]["cell"]}
    xs, targets = next(segments(1))
    gradient = jax.jit(lambda *args: jax.grad(loss, has_aux=True)(*args, carry, xs, targets)[0])
    sparse = gradient(params, mask)
    dense_params, ones = sparsity.as_dense(params, mask)
    dense = gradient(dense_params, ones)
    assert trees.programs(gradient) == 1
    # one network: the same loss, and present weights have the same gradient
    np.testing.assert_array_equal(
        loss(params, mask, carry, xs, targets)[0], loss(dense_params, ones, carry, xs, targets)[0]
    )
    for layer, leaves in mask["cell"].items():
        keep = np.asarray(leaves["kernel"])
        found, old = (np.asarray(g["cell"][layer]["kernel"]) for g in (dense, sparse))
        np.testing.assert_allclose(found[keep], old[keep], rtol=1e-5, atol=1e-7)
        assert not old[~keep].any()
        assert found[~keep].all()
    if method == BPTT():  # and it is what the loss does when such a weight appears
        i, j = np.argwhere(~np.asarray(mask["cell"]["hn"]["kernel"]))[0]

        def with_weight(value):
            cell = dense_params["cell"]
            kernel = cell["hn"]["kernel"].at[i, j].set(value)
            there = {"cell": cell | {"hn": cell["hn"] | {"kernel": kernel}}}
            return loss(there, ones, carry, xs, targets)[0]

        slope = (with_weight(0.01) - with_weight(-0.01)) / 0.02
        np.testing.assert_allclose(slope, dense["cell"]["hn"]["kernel"][i, j], rtol=0.02)
    rewired = sparsity.rewire_rigl(params, mask, dense, fraction=0.25, scope=Scope.UNIT, tied=TIED)
    assert not same(rewired.mask, mask)
    np.testing.assert_array_equal(rewired.mask["cell"]["hr"]["kernel"].sum(axis=0), 4)


def test_a_lottery_ticket_is_trained_from_the_start_again():
    dense = sparsity.mask(CELL, M, sparsity.uniform(1.0))
    optimiser = optax.chain(optax.adam(0.01), sparsity.keep_masked({"cell": dense}))
    _, carry, variables, _, update = set_up(optimiser, mask=dense)
    early, mask = variables["params"], {"cell": variables["sparsity"]["cell"]}
    params = early
    for _ in range(3):
        opt_state = sparsity.with_mask(optimiser.init(params), mask)
        for xs, targets in segments(4):
            params, opt_state, _ = update(params, mask, opt_state, carry, xs, targets)
        params, mask = sparsity.lottery_round(params, mask, early, fraction=0.5)
        assert_sparse(params, mask)
        for name in mask["cell"]:
            kernel, start = (tree["cell"][name]["kernel"] for tree in (params, early))
            np.testing.assert_array_equal(kernel, start * mask["cell"][name]["kernel"])
    assert trees.programs(update) == 1
    assert sparsity.density(mask)["total"] == 1 / 8
