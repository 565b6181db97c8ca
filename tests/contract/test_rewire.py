"""A mask that changes: the influence of what stays is carried over, and nothing compiles anew."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe, twin
from contract.registry import DETERMINED, METHODS, B, M
from flax.core import freeze

from snaprl.cores import CoreState, Mask, OnlineRNN, SparseGRUCell, rewire

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
    with pytest.raises(ValueError, match=r"the new mask has other leaves, Mask\(hr/kernel\), than"):
        rewire(rnn, variables, {"hr": {"kernel": np.eye(3)}}, (B, M))


@pytest.mark.parametrize("method", ["snap1", "snap2"])
def test_a_leaf_of_another_shape_is_refused(method):
    """One that broadcasts, too."""
    rnn, variables, outcome = after_some_steps(method, "gru")
    mask = probe.draw_mask("gru", 73, 0.6)
    mask["hr"]["kernel"] = mask["hr"]["kernel"][:1]
    with pytest.raises(ValueError, match=r"mask hr/kernel has shape \(1, 3\); the parameter has"):
        rewire(rnn, variables, mask, (B, M), outcome.carry)


@pytest.mark.parametrize("wrap", [Mask, freeze])
def test_masks_and_variables_may_be_of_any_kind(wrap):
    rnn, variables, outcome = after_some_steps("snap2", "gru")
    mask = probe.draw_mask("gru", 73, 0.6)
    expected = rewire(rnn, variables, mask, (B, M), outcome.carry)
    found = rewire(rnn, freeze(variables), wrap(mask), (B, M), outcome.carry)
    probe.assert_close(found, expected, 0.0)


def test_a_core_without_a_mask_has_none_to_change():
    sentence = "variables hold no sparsity/cell; they must be the core's own, and the core must be "
    rnn = OnlineRNN(nn.GRUCell(3))
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    variables = rnn.init(jax.random.key(1), carry, np.zeros((1, B, M), "f"))
    with pytest.raises(ValueError, match=sentence):
        rewire(rnn, variables, {"hr": {"kernel": np.eye(3)}}, (B, M))
    sentence = "a SparseGRUCell has follows from its seed, and stays so; use GRUCell with a mask"
    with pytest.raises(ValueError, match=sentence):
        rewire(OnlineRNN(SparseGRUCell(3, fan_in=2)), variables, {}, (B, M))


def test_what_is_no_mask_and_no_carry_is_refused():
    rnn, variables, outcome = after_some_steps("snap2", "gru")
    with pytest.raises(TypeError, match="mask is of type list; it must be nested dicts of 0/1"):
        rewire(rnn, variables, [np.eye(3)], (B, M))  # type: ignore
    with pytest.raises(TypeError, match="carry is of type tuple; it must be the CoreState"):
        rewire(rnn, variables, probe.dense_mask("gru"), (B, M), tuple(outcome.carry))  # type: ignore


def test_without_a_carry_there_is_none():
    rnn, variables, _ = after_some_steps("snap2", "gru")
    _, carry = rewire(rnn, variables, probe.draw_mask("gru", 78, 0.5), (B, M))
    assert carry is None
    assert CoreState._fields == ("hidden", "influence")
