"""Patterns from graphs: symmetric, with the degrees that the graph's law gives."""

import re
import subprocess
import sys

import numpy as np
import pytest

from snaprl.cores import sparsity

GRAPHS = {"ring": sparsity.watts_strogatz(4, 0.2), "hubs": sparsity.barabasi_albert(3)}
EVERY = pytest.mark.parametrize("pattern", GRAPHS.values(), ids=GRAPHS)
N = 20


def says(sentence, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


@pytest.fixture
def networkx():
    """The graphs themselves are drawn only where the optional package is."""
    return pytest.importorskip("networkx")


@EVERY
def test_a_graph_is_symmetric_and_reproducible(networkx, pattern):
    kept = pattern((N, N), 3)
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, kept.T)
    assert not kept.diagonal().any()
    np.testing.assert_array_equal(kept, pattern((N, N), 3))
    np.testing.assert_array_equal(kept, pattern((N, N), np.random.default_rng(3)))
    assert (kept != pattern((N, N), 4)).any()
    rng = np.random.default_rng(3)
    assert (pattern((N, N), rng) != pattern((N, N), rng)).any()


def test_a_ring_without_rewiring_is_derived_by_hand(networkx):
    kept = sparsity.watts_strogatz(4, 0.0)((N, N), 0)
    offset = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    distance = np.minimum(offset, N - offset)  # around the ring
    np.testing.assert_array_equal(kept, (distance == 1) | (distance == 2))


@pytest.mark.parametrize("rewiring", [0.0, 0.3, 1.0])
def test_rewiring_keeps_the_number_of_edges(networkx, rewiring):
    for seed in range(5):
        kept = sparsity.watts_strogatz(4, rewiring)((N, N), seed)
        assert kept.sum() == N * 4
        # an edge moves one of its ends, the unit that it is counted for keeps its half
        assert kept.sum(axis=0).min() >= 2
        assert (kept.sum(axis=0) != 4).any() == (rewiring > 0)


def test_hubs_have_many_inputs_and_most_units_few(networkx):
    for seed in range(5):
        kept = sparsity.barabasi_albert(3)((100, 100), seed)
        degree = kept.sum(axis=0)
        assert kept.sum() == 2 * 3 * (100 - 3)
        assert degree.min() >= 1
        assert (degree[4:] >= 3).all()  # each that came later brought 3
        assert degree.max() > 4 * np.median(degree)


@EVERY
def test_own_weights_come_on_top(networkx, pattern):
    own = {
        GRAPHS["ring"]: sparsity.watts_strogatz(4, 0.2, diagonal=True),
        GRAPHS["hubs"]: sparsity.barabasi_albert(3, diagonal=True),
    }[pattern]
    np.testing.assert_array_equal(own((N, N), 3), pattern((N, N), 3) | np.eye(N, dtype=bool))


def test_what_a_mistake_is_told(networkx):
    with says("neighbours is 3; it must be even, half to either side"):
        sparsity.watts_strogatz(3, 0.1)
    with says("rewiring is 1.5; it is a probability, in [0, 1]"):
        sparsity.watts_strogatz(4, 1.5)
    with says("attachments is 0; it must be an integer of at least 1"):
        sparsity.barabasi_albert(0)
    with says("neighbours is 4, but there are 4 units; use fewer neighbours"):
        sparsity.watts_strogatz(4, 0.1)((4, 4), 0)
    with says("attachments is 4, but there are 4 units; use fewer attachments"):
        sparsity.barabasi_albert(4)((4, 4), 0)
    with says(
        "a graph connects units with units, but shape (8, 20) is not (units, units); for input "
        "kernels use another pattern"
    ):
        sparsity.barabasi_albert(3)((8, 20), 0)


@EVERY
def test_networkx_is_optional(monkeypatch, pattern):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with says("patterns from graphs need networkx; pip install 'snaprl[sparsity]'", ImportError):
        pattern((N, N), 0)


def test_networkx_is_not_imported_before_it_is_needed():
    code = "import sys, snaprl.cores.sparsity; print('networkx' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
