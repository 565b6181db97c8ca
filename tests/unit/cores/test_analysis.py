"""What is said of patterns, influences and gradients, against the same written out."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from snaprl.cores import BPTT, RFLO, RTRL, IndRNNCell, LayerNormGRUCell, LRUCell, SnAp, analysis
from snaprl.cores.analysis import Candidate

N, M, T, B = 4, 2, 5, 2
CELLS: dict[str, nn.RNNCellBase] = {
    "simple": nn.SimpleCell(N, param_dtype=jnp.float64),
    "gru": nn.GRUCell(N, param_dtype=jnp.float64),
    "lstm": nn.LSTMCell(N, param_dtype=jnp.float64),
    "lru": LRUCell(N, param_dtype=jnp.float64),
}
ORDERS = [1, 2, 3]


class OwnCell(nn.SimpleCell):
    """The same cell as one that nothing is known of."""


def drawn(cell: nn.RNNCellBase, seed: int = 0) -> Any:
    x = jnp.zeros((1, M))
    carry = cell.initialize_carry(jax.random.key(0), x.shape)
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, x)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.8, p.shape)), shapes)


def sparse(params: Any, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.random(p.shape) < 0.4, params)


def stream(seed: int = 2) -> tuple[jax.Array, jax.Array]:
    """Inputs, and a reset in the middle of one stream."""
    rng = np.random.default_rng(seed)
    resets = np.zeros((T, B), bool)
    resets[3, 1] = True
    return jnp.asarray(rng.normal(size=(T, B, M))), jnp.asarray(resets)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


# ---- patterns --------------------------------------------------------------------------------


def written_out(cell: str, params: Any, mask: Any, order: int) -> np.ndarray:
    """(4), index by index; state variable u of unit r is row u N + r."""
    states = {"lstm": 2, "lru": 2}.get(cell, 1)
    units = flat(jax.tree.map(lambda p: np.broadcast_to(np.arange(N), p.shape), params))
    kept = flat(mask)
    D = np.zeros((states * N, states * N), bool)
    S_1 = np.zeros((states * N, len(units)), bool)
    for u, r in itertools.product(range(states), range(N)):
        for v, q in itertools.product(range(states), range(N)):
            reads = any(
                mask[name]["kernel"][q, r]
                for name in mask
                if name.startswith("h") and cell != "lru"
            )
            D[u * N + r, v * N + q] = r == q or reads
        for k, unit in enumerate(units):
            S_1[u * N + r, k] = unit == r and kept[k]
    S = S_1
    for _ in range(order - 1):
        S = S_1 | (D @ S)
    return S


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_pattern_is_4_written_out(cell, seed, x64):
    params = drawn(CELLS[cell])
    mask = sparse(params, seed)
    sizes = []
    for order in (*ORDERS, N + 1):
        found = analysis.influence_pattern(CELLS[cell], params, mask, jnp.zeros((1, M)), order)
        np.testing.assert_array_equal(found, written_out(cell, params, mask, order))
        sizes.append(found.sum())
    whole = analysis.influence_pattern(CELLS[cell], params, mask, jnp.zeros((1, M)), None)
    np.testing.assert_array_equal(found, whole)
    assert (sizes[0] < sizes[1]) == (cell != "lru")


def test_a_cell_that_nothing_is_known_of_has_the_same_pattern(x64):
    known, own = (kind(N, param_dtype=jnp.float64) for kind in (nn.SimpleCell, OwnCell))
    params = drawn(known)
    mask = sparse(params)
    for order in (*ORDERS, None):
        patterns = [
            analysis.influence_pattern(cell, params, mask, jnp.zeros((1, M)), order)
            for cell in (known, own)
        ]
        np.testing.assert_array_equal(*patterns)


def test_a_ring_by_hand():
    """Unit r reads unit r - 1 alone: order n reaches n units, of 3."""
    cell = nn.SimpleCell(3)
    params = jax.eval_shape(
        lambda: cell.init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros((1, M)))
    )["params"]
    mask = {"h": {"kernel": np.roll(np.eye(3), 1, axis=1)}}
    there = analysis.existing(params, mask)
    assert there.sum() == 3 * (1 + 1 + M)  # one of the recurrent weights, a bias, the inputs
    for order, share in ((1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 1.0)):
        found = analysis.influence_pattern(cell, params, mask, jnp.zeros((1, M)), order)
        assert analysis.kept_share(found, there) == pytest.approx(share)
        closed = analysis.is_closed(cell, params, mask, jnp.zeros((1, M)), order)
        assert closed == (order >= 3)


def test_where_a_pattern_closes():
    def first_closed(cell, mask=None):
        params = drawn(cell)
        return next(
            n
            for n in itertools.count(1)
            if analysis.is_closed(cell, params, mask or {}, jnp.zeros((1, M)), n)
        )

    assert first_closed(nn.GRUCell(N)) == 2
    assert first_closed(IndRNNCell(N)) == first_closed(LRUCell(N)) == 1


# ---- influence -------------------------------------------------------------------------------


def one_stream(cell: nn.RNNCellBase) -> tuple[Any, Any]:
    """A cell as `(params, h [U N], x) -> h`, and the state that it starts from."""
    start = cell.initialize_carry(jax.random.key(0), (1, M))
    leaves, tree = jax.tree.flatten(start)

    def step(params, h, x):
        carry = jax.tree.unflatten(tree, [part[None] for part in jnp.split(h, len(leaves))])
        after = cell.apply({"params": params}, carry, x[None])[0]
        return jnp.concatenate([leaf[0] for leaf in jax.tree.leaves(after)])

    return step, jnp.concatenate([leaf[0] for leaf in leaves])


def exact_influences(cell: nn.RNNCellBase, params: Any, mask: Any, xs: Any) -> np.ndarray:
    """dh_t/dtheta `[T, U N, P]` by jax through all steps: no product from step to step."""
    step, h_0 = one_stream(cell)
    theta, unravel = ravel_pytree(params)

    def states(theta):
        masked = jax.tree.map(lambda p, m: p * m, unravel(theta), mask)
        hs = [h_0]
        for x in xs:
            hs.append(step(masked, hs[-1], x))
        return jnp.stack(hs[1:])

    return np.asarray(jax.jit(jax.jacfwd(states))(theta))


def masked_influences(
    cell: nn.RNNCellBase, params: Any, mask: Any, xs: Any, patterns: list[np.ndarray]
) -> list[list[np.ndarray]]:
    """(5), step by step, for each pattern."""
    step, h = one_stream(cell)
    theta, unravel = ravel_pytree(jax.tree.map(lambda p, m: p * m, params, mask))
    linear = jax.jit(jax.jacfwd(lambda theta, h, x: step(unravel(theta), h, x), (0, 1)))
    jacobians = []
    for x in xs:
        jacobians.append([np.asarray(J) for J in linear(theta, h, x)])
        h = step(unravel(theta), h, x)
    found = []
    for S in patterns:
        steps = [0 * S]
        for immediate, D in jacobians:
            steps.append(S * (immediate + D @ steps[-1]))
        found.append(steps[1:])
    return found


@pytest.mark.parametrize("cell", ["simple", "lstm"])
def test_the_bias_is_that_of_influences_written_out(cell, x64):
    cell, (xs, resets) = CELLS[cell], stream()
    params = drawn(cell)
    mask = sparse(params)
    found = analysis.influence_bias(cell, params, mask, xs, resets, ORDERS)
    patterns = [analysis.influence_pattern(cell, params, mask, xs[0], n) for n in ORDERS]
    for b, start, stop in ((0, 0, T), (1, 0, 3), (1, 3, T)):  # the episodes
        exact = exact_influences(cell, params, mask, xs[start:stop, b])
        followed = masked_influences(cell, params, mask, xs[start:stop, b], patterns)
        for (n, S), t in itertools.product(enumerate(patterns), range(stop - start)):
            parts = (S * exact[t], followed[n][t], followed[n][t] - exact[t])
            ratios = [np.linalg.norm(part) / np.linalg.norm(exact[t]) for part in parts]
            here = [x[start + t, b] for x in found[ORDERS[n]]]
            np.testing.assert_allclose(here, ratios, rtol=0, atol=1e-12)
    assert found[1].error.max() > 0.01  # there was something to be lost


@pytest.mark.parametrize(("cell", "order"), [(nn.GRUCell(N), 2), (IndRNNCell(N), 1)])
def test_an_order_that_is_closed_loses_nothing(cell, order):
    xs, resets = stream()
    xs = xs.astype(jnp.float32)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), drawn(cell))
    (found,) = analysis.influence_bias(cell, params, {}, xs, resets, [order]).values()
    assert (found.share == 1).all()
    assert (found.size == 1).all()
    assert (found.error == 0).all()


def test_no_influence_loses_nothing():
    """Units that never move: inputs, biases and the state are 0, and so are all derivatives."""
    cell = nn.SimpleCell(N, activation_fn=lambda x: 0 * x)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), drawn(cell))
    found = analysis.influence_bias(cell, params, {}, jnp.zeros((T, B, M)), None, [1])[1]
    assert [x.mean() for x in found] == [1, 1, 0]


# ---- cosines ---------------------------------------------------------------------------------


def test_cosines_of_a_single_unit_by_hand(x64):
    """With one unit the loss only scales the gradient, so its cosine is that of I_t and J_t."""
    cell = nn.SimpleCell(1, param_dtype=jnp.float64)
    params = drawn(cell)
    xs, resets = stream()
    methods = {"rflo": Candidate(RFLO()), "two steps": Candidate(BPTT(), window=2)}
    found = analysis.gradient_cosines(cell, params, {}, xs, resets, methods, jax.random.key(0))
    w = float(params["h"]["kernel"][0, 0])
    a, bias = (np.asarray(params["i"][leaf]) for leaf in ("kernel", "bias"))
    for b in range(B):
        h, J, immediate = 0.0, np.zeros(2 + M), np.zeros(2 + M)
        for t in range(T):
            if resets[t, b]:
                h, J, immediate = 0.0, 0 * J, 0 * J
            x, h_tm1, before = np.asarray(xs[t, b]), h, immediate
            h = float(np.tanh(w * h_tm1 + x @ a[:, 0] + bias[0]))
            slope = 1 - h * h
            immediate = slope * np.array([h_tm1, *x, 1.0])
            J = immediate + slope * w * J
            # this cell keeps nothing of itself, and RFLO drops its weight: I_t is all there is
            for name, kept in (("rflo", immediate), ("two steps", immediate + slope * w * before)):
                expected = kept @ J / np.linalg.norm(kept) / np.linalg.norm(J)
                assert found[name][t, b] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cell", ["gru", "lru"])
def test_methods_that_are_the_same_have_the_same_cosine(cell, x64):
    params, (xs, resets) = drawn(CELLS[cell]), stream()
    methods = {
        "snap0": Candidate(SnAp(order=0)),
        "bptt1": Candidate(BPTT()),
        "snap1": Candidate(SnAp(order=1)),
        "whole": Candidate(BPTT(), window=T),
        "exact tail": Candidate(BPTT(tail=RTRL()), window=3),
        "snap2": Candidate(SnAp(order=2)),
    }
    key = jax.random.key(3)
    found = analysis.gradient_cosines(CELLS[cell], params, {}, xs, resets, methods, key)
    assert all(x.shape == (T, B) for x in found.values())
    for name in ("whole", "exact tail", "snap2"):
        np.testing.assert_allclose(found[name], 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["snap0"], found["bptt1"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["snap0"][0], 1, rtol=0, atol=1e-12)  # a stream's first step
    np.testing.assert_allclose(found["snap0"][3, 1], 1, rtol=0, atol=1e-12)  # a reset
    assert found["snap0"].min() < 0.99
    if cell == "lru":  # order 1 is exact where units read no others
        np.testing.assert_allclose(found["snap1"], 1, rtol=0, atol=1e-12)
    else:
        assert found["snap1"].min() < 0.999


@pytest.mark.slow  # compiles eleven methods
def test_every_candidate_runs_on_a_sparse_core():
    cell = nn.GRUCell(N)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), drawn(cell))
    mask = sparse(params)
    xs, resets = stream()
    xs = xs.astype(jnp.float32)
    methods = analysis.candidates(window=4)
    found = analysis.gradient_cosines(cell, params, mask, xs, resets, methods, jax.random.key(0))
    assert found.keys() == methods.keys()
    assert all((np.abs(x) <= 1 + 1e-6).all() for x in found.values())
    means = {name: x.mean() for name, x in found.items()}
    assert means["SnAp-0"] < means["SnAp-1"] < means["SnAp-2"] <= means["SnAp-3"] + 1e-6


# ---- what is refused, and what it takes ------------------------------------------------------


def test_what_is_refused():
    cell = nn.GRUCell(N)
    with pytest.raises(ValueError, match="order is 0; the pattern of an order is that of 1, 2"):
        analysis.influence_pattern(cell, drawn(cell), {}, jnp.zeros((1, M)), 0)
    normalised = LayerNormGRUCell(N)
    xs, resets = stream()
    with pytest.raises(ValueError, match="LayerNormGRUCell leave its statistics out"):
        analysis.influence_bias(normalised, drawn(normalised), {}, xs, resets, [1])
    with pytest.raises(ValueError, match="LayerNormGRUCell leave its statistics out"):
        key = jax.random.key(0)
        analysis.gradient_cosines(normalised, drawn(normalised), {}, xs, resets, {}, key)


def test_forecasts_grow_as_arrays_do():
    params = {"h": {"kernel": np.zeros((2**10, 2**10), np.float32)}}
    half = {"h": {"kernel": np.arange(2**20).reshape(2**10, 2**10) % 2}}
    assert analysis.bias_gib(params, {}, states=2**8, orders=1) == 6  # 2^30 bytes an influence
    assert analysis.bias_gib(params, half, states=2**8, orders=1) == 3
    assert analysis.cosines_gib(params, {}, states=2**8, steps=2**7, streams=2) == 9
    assert analysis.pattern_gib(params, states=2**10, orders=3) == 19
