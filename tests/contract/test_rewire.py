"""A mask that changes: the influence of what stays is carried over, and nothing compiles anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe, twin
from contract.registry import DETERMINED, METHODS, B, M

from snaprl.cores import CoreState, rewire

pytestmark = pytest.mark.usefixtures("x64")

PATTERNED = ["snap2", "snap3", "rtrl", "tail-snap2"]


def after_some_steps(method, cell, seed=71, density=0.4):
    """`(rnn, variables, outcome)`, in shapes that leave room for any mask."""
    rnn = probe.core(method, cell)
    variables = probe.with_pattern(rnn, probe.draw_variables(cell, seed, density))
    segment = probe.draw_segment(seed, 3)
    return (
        rnn,
        variables,
        probe.program(method, cell)(variables, probe.fresh(method, cell), segment),
    )


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("method", DETERMINED)
def test_the_influence_of_what_stays_is_kept(method, cell):
    rnn, variables, outcome = after_some_steps(method, cell)
    mask = probe.draw_mask(cell, 73, 0.6)
    changed, carry = rewire(rnn, variables, mask, (B, M), outcome.carry)
    before = twin.stand(method, cell, outcome.carry, variables).influence
    after = twin.stand(method, cell, carry, changed).influence
    order = METHODS[method].influence.order
    stays = np.ones(before.shape[1:], bool)
    for tree in (variables["sparsity"]["cell"], mask):
        reached = twin.reached(cell, tree, order)[np.arange(before.shape[1]) % 3]
        stays &= reached[:, twin.unit_of_weight(cell)] & twin.flat(tree).astype(bool)
    np.testing.assert_array_equal(after, np.where(stays, before, 0))
    if METHODS[method].influence.name != "NONE":
        assert after.any()
        assert (after != before).any()
    probe.assert_close(carry.hidden, outcome.carry.hidden, 0.0)


@pytest.mark.parametrize("method", PATTERNED)
def test_learning_goes_on_under_the_new_mask_without_compiling(method):
    cell = "gru"
    rnn, variables, outcome = after_some_steps(method, cell)
    run, segment = probe.program(method, cell), probe.draw_segment(72, 3)
    compiled = run._cache_size()
    for seed, density in [(74, 0.3), (75, 0.7), (76, 1.0)]:
        mask = probe.draw_mask(cell, seed, density)
        variables, carry = rewire(rnn, variables, mask, (B, M), outcome.carry)
        stand = twin.stand(method, cell, carry, variables)
        params = variables["params"]["cell"]
        found = run(variables, carry, segment)
        expected = twin.unroll(method, cell, params, mask, stand, segment)
        probe.assert_close(twin.result(method, cell, found, variables), expected)
        outcome = found
    assert run._cache_size() == compiled


def test_a_pattern_that_has_no_room_is_refused():
    rnn, variables, _ = after_some_steps("snap2", "gru")
    sparse = probe.draw_mask("gru", 77, 0.3)
    params, inputs = variables["params"]["cell"], jax.ShapeDtypeStruct((B, M), jnp.float64)
    tight = rnn.method.pattern(rnn.cell, params, sparse, inputs)
    small = variables | {"sparsity": {"cell": sparse, "pattern": tight}}
    with pytest.raises(ValueError, match="the new pattern does not fit where the old one was"):
        rewire(rnn, small, probe.dense_mask("gru"), (B, M))


def test_a_mask_with_other_leaves_is_refused():
    rnn, variables, _ = after_some_steps("snap2", "gru")
    with pytest.raises(ValueError, match="the new mask has other leaves"):
        rewire(rnn, variables, {"hr": {"kernel": np.eye(3)}}, (B, M))


def test_without_a_carry_there_is_none():
    rnn, variables, _ = after_some_steps("snap2", "gru")
    _, carry = rewire(rnn, variables, probe.draw_mask("gru", 78, 0.5), (B, M))
    assert carry is None
    assert CoreState._fields == ("hidden", "influence")
