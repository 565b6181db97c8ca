"""What a mistake is told: one sentence that names it, before anything runs."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from snaprl.cores import (
    BPTT,
    OKRTRL,
    RTRL,
    Frozen,
    OnlineRNN,
    SnAp,
    SparseGRUCell,
)

T, B, M, N = 4, 2, 3, 5


def set_up(rnn, streams=B):
    carry = rnn.initialize_carry(jax.random.key(0), (streams, M))
    xs = jnp.zeros((T, streams, M))
    return carry, xs


def call(rnn, carry, xs, resets=None, method="__call__"):
    """Runs the module with good parameters."""
    good_carry, good_xs = set_up(rnn)
    good_xs = good_xs if rnn.time_major else good_xs.swapaxes(0, 1)
    variables = jax.jit(rnn.init)(jax.random.key(1), good_carry, good_xs)
    return rnn.apply(variables, carry, xs, resets, method=method)


def says(sentence, kind=ValueError):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(kind, match=f"(?m)^{re.escape(sentence)}$")


GRU = OnlineRNN(nn.GRUCell(N))
NO_METHOD = "it must be an instance of a gradient method, such as SnAp(order=1)"
NO_CELL = "it must be an instance of a recurrent cell"
NO_CARRY = "it must be the CoreState that initialize_carry makes, and it comes before the inputs"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cell": nn.GRUCell}, f"cell is the class GRUCell; {NO_CELL}"),
        ({"cell": nn.RNN(nn.GRUCell(N))}, f"cell is of type RNN; {NO_CELL}"),
        (
            {"cell": nnx.GRUCell(M, N, rngs=nnx.Rngs(0))},
            "GRUCell is flax.nnx's; use snaprl.cores.nnx.OnlineRNN",
        ),
        ({"method": SnAp}, f"method is the class SnAp; {NO_METHOD}"),
        ({"method": "snap"}, f"method is of type str; {NO_METHOD}"),
    ],
)
def test_what_is_no_cell_and_no_method(arguments, sentence):
    with says(sentence, TypeError):
        OnlineRNN(**{"cell": nn.GRUCell(N)} | arguments)


@pytest.mark.parametrize("method", [Frozen(), BPTT()])
def test_a_tail_that_carries_nothing(method):
    sentence = "which carries nothing from segment to segment; a tail is a method with an influence"
    with pytest.raises(TypeError, match=sentence):
        BPTT(tail=method)


def test_a_tail_that_is_no_method():
    with says(f"tail is the class SnAp; {NO_METHOD}", TypeError):
        BPTT(tail=SnAp)


@pytest.mark.parametrize("method", ["__call__", "step"])
@pytest.mark.parametrize(
    ("carry", "found"),
    [
        (jnp.zeros((B, N)), "float32[2, 5]"),
        (np.zeros((T, B, M)), "float64[4, 2, 3]"),
        (None, "None"),
        ((jnp.zeros((B, N)), ()), "of type tuple"),
    ],
)
def test_a_carry_that_is_none(carry, found, method):
    """The hidden state of flax alone, or the inputs, which come first in `nn.RNN`."""
    good, _ = set_up(GRU)
    with says(f"carry is {found}; {NO_CARRY}", TypeError):
        call(GRU, carry, good, method=method)


def test_inputs_without_time():
    carry, xs = set_up(GRU)
    with says("xs has shape (2, 3); a segment of inputs is [T, B, M]"):
        call(GRU, carry, xs[0])
    with says("xs has shape (2, 3); a segment of inputs is [B, T, M]"):
        call(GRU.clone(time_major=False), carry, xs[0])


@pytest.mark.parametrize("rnn", [GRU, GRU.clone(time_major=False)])
def test_a_segment_of_no_steps(rnn):
    carry, xs = set_up(GRU)
    xs = xs[:0] if rnn.time_major else xs[:0].swapaxes(0, 1)
    with says(f"xs has shape {xs.shape}; a segment has at least one step"):
        call(rnn, carry, xs)


@pytest.mark.parametrize(
    "rnn",
    [
        GRU,
        OnlineRNN(nn.LSTMCell(N), RTRL()),
        OnlineRNN(nn.SimpleCell(N), SnAp(order=2), mask={"h": {"kernel": np.eye(N)}}),
        OnlineRNN(SparseGRUCell(N, fan_in=2), time_major=False),
    ],
)
def test_inputs_of_another_width(rnn):
    """Whatever the carry was made for."""
    for width in (M, 7):
        carry = rnn.initialize_carry(jax.random.key(0), (B, width))
        xs = jnp.zeros((T, B, 7) if rnn.time_major else (B, T, 7))
        with says(f"xs has shape {xs.shape}; the cell reads 3 inputs"):
            call(rnn, carry, xs)
        with says("x has shape (2, 7); the cell reads 3 inputs"):
            call(rnn, carry, jnp.zeros((B, 7)), method="step")


def test_a_step_with_time():
    carry, xs = set_up(GRU)
    with says("x has shape (4, 2, 3); one step's inputs are [B, M]"):
        call(GRU, carry, xs, method="step")


def test_resets_of_another_shape_or_type():
    carry, xs = set_up(GRU)
    with says("resets is bool[2, 4]; it must be bool[4, 2]"):
        call(GRU, carry, xs, jnp.zeros((B, T), bool))
    with says("resets is float32[4, 2]; it must be bool[4, 2]"):
        call(GRU, carry, xs, jnp.zeros((T, B)))
    with says("resets is int32[4, 2]; it must be bool[4, 2]"):
        call(GRU, carry, xs, np.zeros((T, B), np.int32))
    with says("resets is of type list; it must be bool[4, 2]"):
        call(GRU, carry, xs, [[False] * B] * T)
    with says("reset is bool[4, 2]; it must be bool[2]"):
        call(GRU, carry, xs[0], jnp.zeros((T, B), bool), method="step")


def test_resets_are_named_in_the_axes_that_the_user_chose():
    carry, xs = set_up(GRU)
    batch_major = GRU.clone(time_major=False)
    for resets in (jnp.zeros((T, B), bool), jnp.zeros(B, bool)):
        with says(f"resets is bool{list(resets.shape)}; it must be bool[2, 4]"):
            call(batch_major, carry, xs.swapaxes(0, 1), resets)


def test_an_input_shape_that_is_none():
    with says("input_shape is (3,); it must be (streams, inputs), each 1, 2, ..."):
        GRU.initialize_carry(jax.random.key(0), (M,))
    with says("input_shape is (4, 2, 3); it must be (streams, inputs), each 1, 2, ..."):
        GRU.initialize_carry(jax.random.key(0), (T, B, M))
    for key, found in ((jax.random.key(0), "key<fry>[]"), (jax.random.PRNGKey(0), "uint32[2]")):
        with says(f"input_shape is {found}; initialize_carry takes (rng, input_shape)", TypeError):
            GRU.initialize_carry((B, M), key)


def differs(place, found, needed):
    return says(
        f"carry.{place} is {found} where {needed} is needed; initialize_carry with input_shape "
        "(2, 3) makes the carry that fits"
    )


@pytest.mark.parametrize("width", [N, 9])
def test_a_carry_for_other_inputs(width):
    """flax's own cells ignore how many there are, so programs hand in what they like."""
    carry = GRU.initialize_carry(jax.random.key(0), (B, width))
    _, xs = set_up(GRU)
    with differs("influence[0]['in']['kernel']", (2, width, 5), (2, 3, 5)):
        call(GRU, carry, xs)
    with differs("influence[0]['in']['kernel']", (2, width, 5), (2, 3, 5)):
        GRU.init(jax.random.key(0), carry, xs)


def test_a_carry_of_other_streams():
    carry, _ = set_up(GRU, streams=3)
    _, xs = set_up(GRU)
    with differs("hidden", (3, 5), (2, 5)):
        call(GRU, carry, xs)
    with differs("hidden", (3, 5), (2, 5)):
        call(GRU, carry, xs[0], method="step")


def test_a_carry_of_another_cell():
    _, xs = set_up(GRU)
    lstm, _ = set_up(OnlineRNN(nn.LSTMCell(N)))
    with differs("hidden", ((2, 5), (2, 5)), (2, 5)):
        call(GRU, lstm, xs)
    mgu, _ = set_up(OnlineRNN(nn.MGUCell(N)))
    with differs(
        "influence",
        "({'hf': {...}, 'hn': {...}, 'if': {...}, 'in': {...}},)",
        "({'hn': {...}, 'hr': {...}, 'hz': {...}, 'in': {...}, ...},)",
    ):
        call(GRU, mgu, xs)


def test_a_carry_of_another_method():
    carry, xs = set_up(OnlineRNN(nn.SimpleCell(N)))
    with differs("influence[0]['h']['kernel']", (2, 5, 5), (2, 5, 5, 5)):
        call(OnlineRNN(nn.SimpleCell(N), RTRL()), carry, xs)
    with differs("influence", "({'h': {...}, 'i': {...}},)", ()):
        call(OnlineRNN(nn.SimpleCell(N), BPTT()), carry, xs)


def test_a_carry_that_only_acted():
    rnn = OnlineRNN(nn.SimpleCell(N))
    carry, xs = set_up(rnn)
    acting = carry._replace(influence=())
    call(rnn, acting, xs[0], method="step")
    with differs("influence", (), "({'h': {...}, 'i': {...}},)"):
        call(rnn, acting, xs)


@pytest.mark.parametrize("leaf", ["kernel", "weights"])
def test_a_mask_that_fits_nothing(leaf):
    rnn = OnlineRNN(nn.SimpleCell(N), mask={"h": {leaf: np.ones((N, M))}})
    sentence = {
        "kernel": "mask h/kernel has shape (5, 3); the parameter has (5, 5)",
        "weights": "mask h/weights masks no parameter of the cell; it has "
        "h/kernel, i/bias, i/kernel",
    }[leaf]
    with says(sentence):
        set_up(rnn)
    carry, xs = set_up(OnlineRNN(nn.SimpleCell(N)))
    with says(sentence):
        rnn.init(jax.random.key(0), carry, xs)


def test_a_mask_of_other_values():
    with says("mask h/kernel has entries other than 0 and 1"):
        OnlineRNN(nn.SimpleCell(N), mask={"h": {"kernel": np.full((N, N), 0.5)}})


@pytest.mark.parametrize("number", [-1, 1.5, None, "2"])
@pytest.mark.parametrize(
    ("kind", "name", "least"), [(SnAp, "order", 0), (OKRTRL, "rank", 1), (BPTT, "pieces", 1)]
)
def test_what_is_no_whole_number(kind, name, least, number):
    with says(f"{kind.__name__}({name}={number!r}): {name} is {least}, {least + 1}, ..."):
        kind(**{name: number})


def test_whole_numbers_of_numpy_are_whole_numbers():
    method = SnAp(order=np.int64(2))  # type: ignore
    assert method == SnAp(order=2)
    assert type(method.order) is int


@pytest.mark.parametrize("sizes", [(4.0, 3), (-1, 3), (4, 0)])
def test_sizes_that_are_none(sizes):
    with says(f"input_shape is {sizes}; it must be (streams, inputs), each 1, 2, ..."):
        GRU.initialize_carry(jax.random.key(0), sizes)


@pytest.mark.parametrize("part", ["hidden", "influence"])
def test_a_carry_of_whole_numbers(part):
    carry, xs = set_up(GRU)
    numbers = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), getattr(carry, part))
    where, shape = ("", "[2, 5]") if part == "hidden" else ("[0]['hn']['bias']", "[2, 5]")
    with says(f"carry.{part}{where} is int32{shape} where float32{shape} is needed"):
        call(GRU, carry._replace(**{part: numbers}), xs)
    shorter = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), getattr(carry, part))
    call(GRU, carry._replace(**{part: shorter}), xs)


def test_inputs_that_are_no_array():
    carry, xs = set_up(GRU)
    with says("xs is of type list; it must be an array", TypeError):
        call(GRU, carry, xs.tolist())
    with says("x is None; it must be an array", TypeError):
        call(GRU, carry, None, method="step")
    call(GRU, carry, np.asarray(xs))


def test_variables_of_another_cell():
    carry, xs = set_up(GRU)

    def of(cell):
        other = OnlineRNN(cell)
        return jax.jit(other.init)(jax.random.key(0), *set_up(other))

    with says(
        "the parameters are hf, hg, hi, ho, if, ig, ii, io, and a GRUCell has hn, hr, hz, in, ir, "
        "iz; apply the module to variables of its own cell"
    ):
        GRU.apply(of(nn.LSTMCell(N)), carry, xs)
    with says(
        f"the parameter hn/bias is float32[{N + 2}], and that of a GRUCell of {N} units is "
        f"float32[{N}]; apply the module to variables of its own cell"
    ):
        GRU.apply(of(nn.GRUCell(N + 2)), carry, xs)


def test_a_mask_that_is_traced():
    @jax.jit
    def make(kernel):
        return OnlineRNN(nn.SimpleCell(N), mask={"h": {"kernel": kernel}})

    with says(
        "mask h/kernel is being traced, and what a core carries is made by a mask's values; make "
        "the mask, and what has it, outside of jit"
    ):
        make(jnp.ones((N, N)))


def test_variables_with_a_mask_for_a_module_without():
    sparse = OnlineRNN(nn.SimpleCell(N), mask={"h": {"kernel": np.eye(N)}})
    carry, xs = set_up(sparse)
    variables = sparse.init(jax.random.key(1), carry, xs)
    with says(
        "the variables hold a mask, in the collection sparsity, and the module has none; give it "
        "the one that they were made with, OnlineRNN(cell, mask=...)"
    ):
        OnlineRNN(nn.SimpleCell(N)).apply(variables, carry, xs)


KEEP = {"hr": {"kernel": np.eye(N)}}
SHAPE = {"hr": {"kernel": np.ones((N, N + 1))}}
HALF = {"hr": {"kernel": np.full((N, N), 0.5)}}
OWN = "and the mask that the module was made with has hr/kernel"


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (
            KEEP,
            "the variables hold sparsity/hr and no sparsity/cell, the mask's place: "
            '{"sparsity": {"cell": mask}}',
        ),
        ({"cell": {"cell": KEEP}}, f"sparsity/cell has the leaves cell/hr/kernel, {OWN}"),
        (
            {"cell": {"hn": KEEP["hr"], **KEEP}},
            f"sparsity/cell has the leaves hn/kernel, hr/kernel, {OWN}",
        ),
        ({"cell": {}}, f"sparsity/cell has the leaves none, {OWN}"),
        ({"cell": SHAPE}, "sparsity/cell/hr/kernel has shape (5, 6); the parameter has (5, 5)"),
        ({"cell": HALF}, "sparsity/cell/hr/kernel has entries other than 0 and 1"),
    ],
)
@pytest.mark.parametrize("method", [SnAp(order=1), SnAp(order=2)], ids=repr)
def test_another_mask_among_the_variables(method, held, sentence):
    """None of them was ever applied as something else, or not at all."""
    rnn = OnlineRNN(nn.GRUCell(N), method, mask=KEEP)
    carry, xs = set_up(rnn)
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, xs)
    with says(sentence):
        rnn.apply({**variables, "sparsity": held}, carry, xs)
    if "0 and 1" not in sentence:  # what is being traced has no values
        with says(sentence):
            jax.jit(rnn.apply)({**variables, "sparsity": held}, carry, xs)


def test_a_mask_anywhere_among_the_variables_of_a_core_without_one():
    carry, xs = set_up(GRU)
    variables = jax.jit(GRU.init)(jax.random.key(1), carry, xs)
    with pytest.raises(ValueError, match="the variables hold a mask, in the collection sparsity"):
        GRU.apply({**variables, "sparsity": KEEP}, carry, xs)
