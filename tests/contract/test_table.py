"""The docs' table of methods is the registry's."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from contract import probe, table
from contract.registry import METHODS, M

from snaprl.cores import OnlineRNN, reach, sparsity
from snaprl.cores.cells import unitwise


def test_the_table_in_the_docs_is_up_to_date():
    text = table.PAGE.read_text("utf-8")
    assert table.START + table.table() + table.END in text, "run python tests/contract/table.py"


def test_every_method_has_its_costs():
    assert set(table.COST) == set(METHODS)


class Unknown(nn.GRUCell):
    """A subclass may compute anything."""


@pytest.mark.parametrize("method", METHODS)
def test_the_cells_in_the_table_are_those_that_are_taken(method):
    """A cell that is not known to be unit-wise is taken, or told of before anything runs."""
    rnn = OnlineRNN(Unknown(4), METHODS[method].method)
    taken = contextlib.nullcontext()
    if table.COST[method].cells == table.UNITWISE:
        taken = pytest.raises(TypeError, match="Unknown")
    with taken:
        rnn.initialize_carry(jax.random.key(0), (1, M))


def product(formula, **sizes):
    """What a formula of the table is, such as `2 U N^2 G`."""
    value = 1.0
    for factor in formula.split():
        base, _, power = factor.partition("^")
        value *= (sizes[base] if base in sizes else float(base)) ** int(power or 1)
    return value


@pytest.mark.parametrize("kept", [None, 3], ids=["dense", "sparse"])
@pytest.mark.parametrize("cell", [nn.GRUCell(40), nn.LSTMCell(40)], ids=["gru", "lstm"])
@pytest.mark.parametrize("method", METHODS)
def test_the_memory_in_the_table_is_what_is_carried(method, cell, kept):
    """To a fifth: some gates have no bias, some lists hold no unit's own weight, factors a sign."""
    mask = None if kept is None else sparsity.mask(cell, M, sparsity.fixed_fan_in(kept))
    kind = METHODS[method].method
    rnn = OnlineRNN(cell, kind, mask=mask)
    carry = jax.eval_shape(lambda: rnn.initialize_carry(jax.random.key(0), (1, M)))
    found = sum(leaf.size for leaf in probe.floats(carry.influence))
    size, view, formula = cell.features, unitwise(cell), table.COST[method].memory
    if formula == "none":
        assert not found
        return
    hidden = cell.initialize_carry(jax.random.key(0), (1, M))
    params = jax.eval_shape(cell.init, jax.random.key(0), hidden, jnp.zeros((1, M)))["params"]
    followed = getattr(kind, "tail", None) or kind
    reads = reach.reads(view, params, {} if mask is None else mask)
    reached = reach.reach(reads, getattr(followed, "order", None)).sum() / size
    sizes = {
        "N": size,
        "G": len(view.recurrent),
        "U": view.states,
        "K": size + M + 1,
        "k": (kept or size) + M + 1,
        "s": reached,
        "R": getattr(followed, "rank", 1),
    }
    assert 0.8 < found / product(formula, **sizes) < 1.2
