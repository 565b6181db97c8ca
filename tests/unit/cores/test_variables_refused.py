"""Parameters of another cell, carries of other types or methods: one sentence each."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.registry import METHODS

from snaprl.cores import Mask, OnlineRNN, OnlineStack, SnAp, SparseGRUCell, rewire

T, B, M, N = 3, 2, 3, 4
GRU = OnlineRNN(nn.GRUCell(N))
EYE = {name: {"kernel": np.eye(N)} for name in ("hr", "hz", "hn")}
OWN = "apply the module to variables of its own cell"


def set_up(rnn):
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    xs = jax.random.normal(jax.random.key(5), (T, B, M))
    return carry, xs, jax.jit(rnn.init)(jax.random.key(1), carry, xs)


def says(sentence, kind=ValueError):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(kind, match=f"(?m)^{re.escape(sentence)}$")


# ---- parameters ------------------------------------------------------------------------------


def test_parameters_that_lie_in_another_place():
    carry, xs, variables = set_up(GRU)
    own = variables["params"]["cell"]
    place = 'and no params/cell, where the parameters of the cell are: {"params": {"cell": ...}}'
    layers = "params/hn, params/hr, params/hz, params/in, params/ir, params/iz"
    with says(f"the variables hold {layers}, {place}"):
        GRU.apply({"params": own}, carry, xs)
    for nothing in ({}, {"params": {}}):
        with says(f"the variables hold nothing, {place}"):
            GRU.apply(nothing, carry, xs)


@pytest.mark.parametrize(
    ("layer", "leaves", "found", "needed"),
    [
        ("hr", {"kernel": np.ones((N, N + 1), np.float32)}, "/kernel is float32[4, 5]", "[4, 4]"),
        ("hr", {"bias": np.ones(N, np.float32)}, "/kernel is missing", "[4, 4]"),
        ("ir", {"bias": np.ones(N, np.float32)}, "/kernel is missing", "[3, 4]"),
        ("hr", np.ones((N, N), np.float32), "/kernel is missing", "[4, 4]"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "step"])
def test_a_layer_of_another_kind(layer, leaves, found, needed, method):
    carry, xs, variables = set_up(GRU)
    params = {"cell": {**variables["params"]["cell"], layer: leaves}}
    x = xs if method == "__call__" else xs[0]
    with says(
        f"the parameter {layer}{found}, and that of a GRUCell of 4 units is float32{needed}; {OWN}"
    ):
        GRU.apply({"params": params}, carry, x, method=method)


def test_a_bias_may_be_left_out():
    carry, xs, variables = set_up(GRU)
    params = variables["params"]["cell"]
    without = {**params, "ir": {"kernel": params["ir"]["kernel"]}}
    x, acting = xs[0], carry._replace(influence=())
    _, found = GRU.apply({"params": {"cell": without}}, acting, x, method="step")
    none = {**params, "ir": {**params["ir"], "bias": jnp.zeros(N)}}
    _, expected = GRU.apply({"params": {"cell": none}}, acting, x, method="step")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_leaf_more_is_named_where_the_trees_look_alike():
    carry, xs, variables = set_up(GRU)
    params = variables["params"]["cell"]
    more = {**params, "hr": {**params["hr"], "bias": jnp.zeros(N)}}
    with says(
        "a leaf of carry.influence is none where [0]['hr']['bias'] is needed; initialize_carry "
        "with input_shape (2, 3) makes the carry that fits"
    ):
        GRU.apply({"params": {"cell": more}}, carry, xs)


def test_dense_and_compressed_cells_are_not_each_other():
    sparse = OnlineRNN(SparseGRUCell(N, 2))
    dense_carry, xs, dense = set_up(GRU)
    carry, _, variables = set_up(sparse)
    with says(
        "the parameter hn/kernel is missing, and that of a GRUCell of 4 units is float32[4, 4]; "
        + OWN
    ):
        GRU.apply(variables, dense_carry, xs)
    cell = "SparseGRUCell of 4 units is float32"
    with says(f"the parameter hn/values is missing, and that of a {cell}[2, 4]; {OWN}"):
        sparse.apply(dense, carry, xs)
    other = set_up(OnlineRNN(SparseGRUCell(N, 3)))[2]
    with says(f"the parameter hn/values is float32[3, 4], and that of a {cell}[2, 4]; {OWN}"):
        sparse.apply(other, carry, xs)


# ---- the carry -------------------------------------------------------------------------------


class Own(nn.RNNCellBase):
    """A cell that nothing is known of."""

    features: int = N

    @nn.compact
    def __call__(self, carry, x):
        carry = nn.tanh(nn.Dense(self.features)(x) + nn.Dense(self.features)(carry))
        return carry, carry

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((input_shape[0], self.features))

    @property
    def num_feature_axes(self):
        return 1


class Alone(Own):
    """Reads no inputs."""

    @nn.compact
    def __call__(self, carry, x):
        carry = nn.tanh(nn.Dense(self.features)(carry))
        return carry, carry


def floats(tree, dtype):
    def leaf(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)


RUNS = {name: (nn.GRUCell(N), row.method) for name, row in METHODS.items()}
RUNS |= {f"own-{name}": (Own(), METHODS[name].method) for name in ("snap1", "rtrl", "bptt")}


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("name", RUNS)
def test_a_carry_in_short_floats_goes_on_in_those_of_the_method(name, steps):
    cell, method = RUNS[name]
    rnn = OnlineRNN(cell, method, mask=EYE if isinstance(cell, nn.GRUCell) else None)
    carry, xs, variables = set_up(rnn)
    run = jax.jit(rnn.apply)
    carry, _ = run(variables, carry, xs)
    short = floats(carry, jnp.bfloat16)
    expected, _ = run(variables, floats(short, jnp.float32), xs[:steps])
    found, _ = run(variables, short, xs[:steps])
    # the hidden state of a cell that is known stays as short as it was
    hidden = expected.hidden if isinstance(cell, Own) else floats(expected.hidden, jnp.bfloat16)
    for a, b in zip(jax.tree.leaves(found.hidden), jax.tree.leaves(hidden), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=1e-2)
    pairs = zip(jax.tree.leaves(found.influence), jax.tree.leaves(expected.influence), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", [SnAp(1), SnAp(2)])
def test_a_carry_in_longer_floats_is_refused(method):
    rnn = OnlineRNN(nn.GRUCell(N), method, mask=EYE)
    carry, xs, variables = set_up(rnn)
    longer = carry._replace(influence=floats(carry.influence, jnp.float64))
    with pytest.raises(
        ValueError, match=r"^carry.influence\S+ is float64.* where float32.* needed"
    ):
        rnn.apply(variables, longer, xs)


def test_floats_where_keys_are():
    rnn = OnlineRNN(nn.GRUCell(N), METHODS["uoro"].method)
    carry, xs, variables = set_up(rnn)
    drawn = carry.influence
    wrong = carry._replace(influence=drawn._replace(key=drawn.key.astype(jnp.float32)))
    with says("carry.influence.key is float32[2, 2] where uint32[2, 2] is needed"):
        rnn.apply(variables, wrong, xs)


def test_a_number_where_there_is_no_influence():
    rnn = OnlineRNN(nn.GRUCell(N), METHODS["bptt"].method)
    carry, xs, variables = set_up(rnn)
    with pytest.raises(ValueError, match=r"^carry.influence is \(\) where \(\) is needed|^a leaf"):
        rnn.apply(variables, carry._replace(influence=jnp.zeros(())), xs)


@pytest.mark.parametrize(("own", "other"), [(1, 2), (2, 1)])
def test_a_carry_of_another_method_is_not_rewired(own, other):
    rnn = OnlineRNN(nn.GRUCell(N), SnAp(own), mask=Mask(EYE, room=3))
    _, _, variables = set_up(rnn)
    carry, _, _ = set_up(OnlineRNN(nn.GRUCell(N), SnAp(other), mask=EYE))
    with pytest.raises(ValueError, match=r"^carry.influence is .* where .* is needed"):
        rewire(rnn, variables, EYE, (B, M), carry)


def test_a_carry_for_acting_alone_is_rewired_as_it_is():
    rnn = OnlineRNN(nn.GRUCell(N), METHODS["frozen"].method, mask=EYE)
    carry, _, variables = set_up(rnn)
    _, found = rewire(rnn, variables, EYE, (B, M), carry)
    assert found == carry


# ---- what else -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SnAp(1), METHODS["rtrl"].method], ids=repr)
def test_kernels_that_say_where_they_lie_on_a_mesh(method):
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    rnn = OnlineRNN(nn.GRUCell(N, kernel_init=kernel), method)
    carry, xs, variables = set_up(rnn)

    def gradient(rnn, params):
        return jax.grad(lambda p: rnn.apply({"params": p}, carry, xs)[1].sum())(params)

    found = gradient(rnn, variables["params"])
    assert jax.tree.structure(found) == jax.tree.structure(variables["params"])
    plain = nn.meta.unbox(variables["params"])
    expected = gradient(OnlineRNN(nn.GRUCell(N), method), plain)
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(found), expected)


class Zeros:
    """An initialiser that Python cannot hash."""

    __hash__ = None  # type: ignore

    def __call__(self, key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype)


def test_a_cell_that_is_not_hashable():
    rnn = OnlineRNN(nn.GRUCell(N, carry_init=Zeros()))
    carry, xs, variables = set_up(GRU)
    _, found = rnn.apply(variables, carry, xs)
    _, expected = GRU.apply(variables, carry, xs)
    np.testing.assert_array_equal(found, expected)


def test_a_cell_of_a_users_own_may_read_nothing():
    rnn = OnlineRNN(Alone())
    carry = rnn.initialize_carry(jax.random.key(0), (B, 0))
    xs = jnp.zeros((T, B, 0))
    _, ys = rnn.apply(rnn.init(jax.random.key(1), carry, xs), carry, xs)
    assert ys.shape == (T, B, N)


@pytest.mark.parametrize(
    ("xs", "found"),
    [
        (jnp.zeros((T, B, M), jnp.complex64), "complex64[3, 2, 3]; it must be an array of real"),
        (np.full((T, B, M), "a"), "<U1[3, 2, 3]; it must be an array of real numbers"),
        (jax.ShapeDtypeStruct((T, B, M), jnp.float32), "float32[3, 2, 3]; it must be an array"),
    ],
)
def test_inputs_that_are_no_numbers(xs, found):
    carry, _, variables = set_up(GRU)
    with pytest.raises(TypeError, match=f"^xs is {re.escape(found)}"):
        GRU.apply(variables, carry, xs)


def test_what_a_stack_is_made_of():
    with says(
        "method is the class SnAp; it must be an instance of a gradient method, such as "
        "SnAp(order=1)",
        TypeError,
    ):
        OnlineStack((nn.GRUCell(N),), SnAp)  # type: ignore
    with says("masks is of type int; it must be one mask per cell, or None", TypeError):
        OnlineStack((nn.GRUCell(N),), masks=5)  # type: ignore


def test_a_rewired_mask_lies_on_the_device_and_compiles_nothing():
    rnn = OnlineRNN(nn.GRUCell(N), SnAp(2), mask=Mask(EYE, room=3))
    carry, xs, variables = set_up(rnn)
    run = jax.jit(rnn.apply)
    run(variables, carry, xs)
    variables, carry = rewire(rnn, variables, EYE, (B, M), carry)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    run(variables, carry, xs)
    assert run._cache_size() == 1
