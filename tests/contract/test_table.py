"""The docs' table of methods is the registry's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from contract import probe, table
from contract.registry import METHODS, M

from snaprl.cores import BPTT, RFLO, RTRL, UORO, EProp, OnlineRNN, SnAp, sparsity
from snaprl.cores.cells import unitwise


def test_the_table_in_the_docs_is_up_to_date():
    text = table.PAGE.read_text("utf-8")
    assert table.START + table.table() + table.END in text, "run python tests/contract/table.py"


def test_every_method_has_its_costs():
    assert set(table.COST) == set(METHODS)


def numbers(method, cell, mask):
    """How many floats a stream carries."""
    rnn = OnlineRNN(cell, method, mask=mask)
    carry = jax.eval_shape(lambda: rnn.initialize_carry(jax.random.key(0), (1, M)))
    return sum(leaf.size for leaf in probe.floats(carry.influence))


@pytest.mark.parametrize("cell", [nn.GRUCell(20), nn.LSTMCell(20)])
def test_the_memory_in_the_table_is_what_is_carried(cell):
    """Without a pattern what is absent is carried, too; with one, what is there."""
    size, kept = cell.features, 3
    mask = sparsity.mask(cell, M, sparsity.fixed_fan_in(kept))
    carry = cell.initialize_carry(jax.random.key(0), (1, M))
    params = jax.eval_shape(cell.init, jax.random.key(0), carry, jnp.zeros((1, M)))["params"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    states = unitwise(cell).states
    for method in (SnAp(order=1), RFLO(), EProp(), BPTT(tail=SnAp(order=1))):
        assert numbers(method, cell, mask) == numbers(method, cell, None) == states * weights
    assert numbers(UORO(), cell, mask) == weights + states * size
    assert numbers(RTRL(), cell, None) == size * states * weights
    gates = len(mask)
    row = gates * (kept + M + 1)  # of the weights into a unit; a GRU's has a bias in one more place
    pairs = size * (kept + 1)  # some lists hold a unit's own weight
    found = numbers(SnAp(order=2), cell, mask)
    assert 0.8 * states * pairs * row <= found <= states * pairs * (row + 1)
