"""Masks under nnx's optimiser, whose trees are states of variables."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from snaprl.cores import SnAp, sparsity
from snaprl.cores.nnx import OnlineRNN

T, B, M, N = 4, 3, 2, 6


class Model(nnx.Module):
    """A core and a readout; a list of layers has numbers for names."""

    def __init__(self, mask):
        rngs = nnx.Rngs(0)
        cell = nnx.GRUCell(M, N, rngs=rngs)
        self.rnn = OnlineRNN(cell, SnAp(), mask={"dense_h": {"kernel": mask}})
        self.heads = nnx.List([nnx.Linear(N, M, rngs=rngs)])

    def __call__(self, carry, xs):
        carry, ys = self.rnn(carry, xs)
        return carry, self.heads[0](ys)


TRACED = []


@nnx.jit
def learn(model, optimizer, carry, xs):
    TRACED.append(xs.shape)

    def loss(model):
        after, ys = model(carry, xs)
        return jnp.mean((ys - xs) ** 2), after

    grads, carry = nnx.grad(loss, has_aux=True)(model)
    optimizer.update(model, grads)
    return carry


def recurrent_mask(keep):
    return {"rnn": {"cell": {"dense_h": {"kernel": keep}}}}


def kernel(model):
    return np.asarray(model.rnn.cell.dense_h.kernel[...])


KEEP = np.random.default_rng(0).random((N, 3 * N)) < 0.5
XS = np.random.default_rng(1).normal(size=(6, T, B, M)).astype("f")


def set_up(*transformations):
    """Weight decay makes whatever is not held move."""
    model = Model(KEEP)
    chain = optax.chain(optax.adamw(0.05), *transformations)
    return model, nnx.Optimizer(model, chain, wrt=nnx.Param)


def rewire_set(model, mask, carry):
    del carry
    return sparsity.rewire_set(nnx.state(model, nnx.Param), mask, jax.random.key(2), fraction=0.5)


def rewire_rigl(model, mask, carry):
    """The dense gradient is that of the model with every weight present."""
    params, ones = sparsity.as_dense(nnx.state(model, nnx.Param), mask)
    plain = Model(np.asarray(ones["rnn"]["cell"]["dense_h"]["kernel"]))
    nnx.update(plain, params)
    gradient = nnx.grad(lambda model: (model(carry, XS[0])[1] ** 2).mean())(plain)
    params = nnx.state(model, nnx.Param)
    return sparsity.rewire_rigl(params, mask, gradient, fraction=0.5)


@pytest.mark.parametrize("rewire", [rewire_set, rewire_rigl])
def test_masked_weights_stay_0_and_change_places_without_compiling(rewire):
    mask = recurrent_mask(KEEP)
    model, optimizer = set_up(sparsity.keep_masked(mask))
    carry = model.rnn.initialize_carry((B, M), nnx.Rngs(1))
    before = kernel(model)
    for xs in XS[:3]:
        carry = learn(model, optimizer, carry, xs)
    after = kernel(model)
    assert not after[~KEEP].any()
    assert (after != before)[KEEP].all()

    rewired = rewire(model, mask, carry)
    keep = np.asarray(rewired.mask["rnn"]["cell"]["dense_h"]["kernel"])
    assert keep.sum() == KEEP.sum()
    assert (keep != KEEP).any()
    nnx.update(model, rewired.params)
    np.testing.assert_array_equal(kernel(model), np.where(KEEP & keep, after, 0))
    carry = model.rnn.rewire(rewired.mask["rnn"]["cell"], carry)
    moments = sparsity.reset_moments(optimizer.opt_state, mask, rewired.mask)
    found = nnx.as_pure(moments[0][0].mu)["rnn"]["cell"]["dense_h"]["kernel"]
    assert not np.asarray(found)[keep != KEEP].any()
    assert np.asarray(found)[keep & KEEP].all()
    optimizer.opt_state = nnx.data(sparsity.with_mask(moments, rewired.mask))

    compiled = len(TRACED)
    for xs in XS[3:]:
        carry = learn(model, optimizer, carry, xs)
    assert not kernel(model)[~keep].any()
    assert kernel(model)[keep].all()
    assert len(TRACED) == compiled


def test_pruning_follows_its_schedule():
    dense = np.ones((N, 3 * N), bool)
    schedule = sparsity.cubic_schedule(0.25, begin=0, end=3)
    pruning = sparsity.magnitude_pruning(recurrent_mask(dense), schedule)
    model, optimizer = set_up(pruning)
    model.rnn.rewire({"dense_h": {"kernel": KEEP | True}})
    carry = model.rnn.initialize_carry((B, M), nnx.Rngs(1))
    for xs in XS:
        carry = learn(model, optimizer, carry, xs)
    mask = nnx.as_pure(sparsity.mask_of(optimizer.opt_state))
    keep = np.asarray(mask["rnn"]["cell"]["dense_h"]["kernel"])
    assert keep.sum() == round(0.25 * keep.size)
    assert not kernel(model)[~keep].any()
    assert kernel(model)[keep].all()


def test_a_mask_may_name_a_layer_of_a_list():
    keep = np.arange(N * M).reshape(N, M) % 2 == 0
    model, optimizer = set_up(sparsity.keep_masked({"heads": {0: {"kernel": keep}}}))
    learn(model, optimizer, model.rnn.initialize_carry((B, M), nnx.Rngs(1)), XS[0])
    assert not np.asarray(model.heads[0].kernel[...])[~keep].any()


def test_a_mask_that_fits_nothing_is_named():
    model, optimizer = set_up(sparsity.keep_masked({"heads": {1: {"kernel": KEEP}}}))
    carry = model.rnn.initialize_carry((B, M), nnx.Rngs(1))
    with pytest.raises(ValueError, match="mask heads/1/kernel masks nothing in the tree; it has"):
        learn(model, optimizer, carry, XS[0])
