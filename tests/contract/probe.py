"""Runs one row of the table over segments, compiled once, and draws what it runs on."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from contract.registry import CELLS, METHODS, B, M, N

from snaprl.cores import CoreState, OnlineRNN


class Segment(NamedTuple):
    xs: np.ndarray  # [T, B, M]
    resets: np.ndarray  # [T, B] bool
    weights: np.ndarray  # [T, B, N]  dL/dys, `widened`: the loss is linear, which loses nothing

    @property
    def steps(self) -> int:
        return len(self.xs)

    def cut(self, *lengths: int) -> "list[Segment]":
        """The segment as shorter ones."""
        assert sum(lengths) == self.steps
        ends = np.cumsum(lengths)
        return [
            Segment(*(x[end - length : end] for x in self))
            for end, length in zip(ends, lengths, strict=True)
        ]

    def stream(self, *streams: int) -> "Segment":
        """Some of the streams."""
        return Segment(*(x[:, list(streams)] for x in self))


class Outcome(NamedTuple):
    carry: CoreState  # after the segment
    ys: jax.Array  # [T, B, N]
    params: Any  # gradients of the loss, shaped like what they are gradients of
    xs: Any
    old_carry: Any


def widened(weights: Any, like: Any) -> Any:
    """`[..., N]` for as many outputs as a cell has: the same numbers at other units."""
    parts = like.shape[-1] // N
    return jnp.concatenate([jnp.roll(weights, k, axis=-1) for k in range(parts)], axis=-1)


@lru_cache
def shapes(cell: str) -> dict[str, Any]:
    """The parameters of `cell` as shapes."""

    def init() -> Any:
        carry = CELLS[cell].initialize_carry(jax.random.key(0), (B, M))
        return CELLS[cell].init(jax.random.key(0), carry, jnp.zeros((B, M)))

    return jax.eval_shape(init)["params"]


@lru_cache
def core(method: str, cell: str) -> OnlineRNN:
    """The module of a row. Its mask is all ones: a pattern comes with the variables."""
    return OnlineRNN(CELLS[cell], METHODS[method].method, mask=dense_mask(cell))


def with_pattern(rnn: OnlineRNN, variables: Any) -> Any:
    """The variables with what the method reads off their mask, in the shapes of the dense one."""
    if "sparsity" not in variables or "pattern" in variables["sparsity"]:
        return variables
    params, mask = (variables[name]["cell"] for name in ("params", "sparsity"))
    cell, inputs = rnn.cell, jax.ShapeDtypeStruct((B, M), jnp.float64)
    dense = jax.tree.map(np.ones_like, mask)
    room = rnn.method.pattern(cell, params, dense, inputs)
    mask = jax.tree.map(np.asarray, mask)
    pattern = rnn.method.pattern(cell, params, mask, inputs, room)
    found = {"cell": mask} | ({"pattern": pattern} if pattern else {})
    return variables | {"sparsity": jax.tree.map(jnp.asarray, found)}


class Program:
    """`program(variables, carry, segment) -> Outcome`, compiled once per shape."""

    def __init__(self, method: str, cell: str):
        self.rnn, self.run = core(method, cell), jax.jit(self._run)

    def __call__(self, variables: Any, carry: CoreState, segment: Segment) -> Outcome:
        return self.run(with_pattern(self.rnn, variables), carry, segment)

    def _cache_size(self) -> int:
        return self.run._cache_size()

    def _run(self, variables: Any, carry: CoreState, segment: Segment) -> Outcome:
        def loss(params: Any, carry: CoreState, xs: jax.Array) -> tuple[jax.Array, tuple]:
            changed = variables | {"params": params}
            carry, ys = self.rnn.apply(changed, carry, xs, segment.resets)
            return jnp.vdot(widened(segment.weights, ys), ys), (carry, ys)

        # keys are in the carry of some methods: their gradient is none
        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
        (params, old_carry, xs), (end, ys) = gradient(variables["params"], carry, segment.xs)
        return Outcome(end, ys, params, xs, old_carry)


@lru_cache
def program(method: str, cell: str) -> Program:
    return Program(method, cell)


def fresh(method: str, cell: str, streams: int = B) -> CoreState:
    return core(method, cell).initialize_carry(jax.random.key(0), (streams, M))


def floats(tree: Any) -> list[Any]:
    """The leaves that are no keys."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def run_through(
    method: str, cell: str, variables: Any, carry: CoreState, segments: list[Segment]
) -> list[Outcome]:
    """Segment after segment, each from where the one before it ended."""
    outcomes = []
    for segment in segments:
        outcomes.append(program(method, cell)(variables, carry, segment))
        carry = outcomes[-1].carry
    return outcomes


def added(outcomes: list[Outcome]) -> Any:
    """The parameters' gradients of several segments, summed."""
    return jax.tree.map(lambda *g: sum(np.asarray(x) for x in g), *(o.params for o in outcomes))


# ---- what it runs on -------------------------------------------------------------------------


def draw_params(cell: str, seed: int) -> dict[str, Any]:
    """Biases too are drawn: a zero would hide what touches them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.8, p.shape)), shapes(cell))


def dense_mask(cell: str) -> dict[str, Any]:
    return jax.tree.map(lambda p: np.ones(p.shape, bool), shapes(cell))


def draw_mask(cell: str, seed: int, density: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.random(p.shape) < density, shapes(cell))


def draw_variables(cell: str, seed: int, density: float = 1.0) -> dict[str, Any]:
    """Parameters and a pattern, as `OnlineRNN` keeps them."""
    mask = jax.tree.map(jnp.asarray, draw_mask(cell, seed + 1, density))
    return {"params": {"cell": draw_params(cell, seed)}, "sparsity": {"cell": mask}}


def draw_segment(
    seed: int, steps: int, streams: int = B, inputs: str = "normal", reset_rate: float = 0.0
) -> Segment:
    """A segment; `inputs` is "normal", "one-hot" (almost all of it exactly 0) or "zero"."""
    rng = np.random.default_rng(seed)
    xs = {
        "normal": rng.normal(size=(steps, streams, M)),
        "one-hot": np.eye(M)[rng.integers(0, M, (steps, streams))],
        "zero": np.zeros((steps, streams, M)),
    }[inputs]
    resets = rng.random((steps, streams)) < reset_rate
    return Segment(xs, resets, rng.normal(size=(steps, streams, N)))


def assert_close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Compares two trees leaf by leaf; the same tree, the same shapes, no NaN."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, jax.tree_util.keystr(path)
        if not np.issubdtype(y.dtype, np.floating):  # keys; and their gradients, which are none
            assert y.dtype == jax.dtypes.float0 or (x == y).all()
            continue
        assert np.isfinite(y).all()
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )
