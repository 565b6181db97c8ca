"""Lambda-returns and V-trace in segments of several episodes, against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.agents.segments import B, T, episodes, make_segment

from snaprl.agents import Segment
from snaprl.agents.returns import lambda_returns, vtrace

HUGE = 1e30


def twin(segment, values, gamma, lambda_):
    """(1 - lambda) sum_n lambda^(n-1) G^(n), the rest of the weight on the last; NaN: no step."""
    found = np.full((T, B), np.nan)
    for b in range(B):
        for start, end in episodes(segment, b):
            for t in range(start, end):
                total, weight = 0.0, 1.0
                for n in range(1, end - t + 1):
                    rewards = sum(gamma**k * segment.reward[t + k, b] for k in range(n))
                    last = segment.discount[t + n - 1, b] * values[t + n, b]
                    share = weight if n == end - t else weight * (1 - lambda_)
                    total += share * (rewards + gamma**n * last)
                    weight *= lambda_
                found[t, b] = total
    return found


def values_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(T + 1, B)).astype(np.float32)


@pytest.mark.parametrize("same_step", [False, True], ids=["next step", "same step"])
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_against_the_definition(lambda_, same_step):
    segment, values = make_segment(3, same_step=same_step), values_of(4)
    found = lambda_returns(segment, values, discount=0.9, trace_decay=lambda_)
    wanted = twin(segment, values, 0.9, lambda_)
    steps = segment.mask > 0
    assert (np.isnan(wanted) == ~steps).all()
    np.testing.assert_allclose(np.asarray(found)[steps], wanted[steps], rtol=1e-5, atol=1e-5)
    # all kinds of ends occurred, and several episodes in each stream
    assert (segment.discount == 0).any()
    assert min(len(list(episodes(segment, b))) for b in range(B)) > 2


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_nothing_of_another_episode_leaks_in(lambda_):
    segment, values = make_segment(5), values_of(6)
    before = lambda_returns(segment, values, discount=0.9, trace_decay=lambda_)
    values[segment.first] = HUGE  # an episode's first value tells of nothing that came before
    nothing = segment.mask == 0
    segment.reward[nothing] = HUGE
    segment.discount[nothing] = 5
    after = lambda_returns(segment, values, discount=0.9, trace_decay=lambda_)
    np.testing.assert_array_equal(np.asarray(after)[~nothing], np.asarray(before)[~nothing])


def test_a_cut_episode_counts_on_and_one_that_ended_does_not():
    """By hand: rewards 1 and 2, then the end; V = 10 everywhere, gamma = 1/2, lambda = 1/2."""

    def column(*numbers):
        return np.array(numbers, np.float32)[:, None]

    for discount, wanted in ((0, [1 + 0.5 * (5 + 1), 2]), (1, [1 + 0.5 * (5 + 3.5), 2 + 5])):
        segment = Segment(
            (), None, None, column(1, 2, 0), column(1, discount, 1), column(1, 1, 0), *[None] * 4
        )
        found = lambda_returns(segment, column(10, 10, 10, 10), discount=0.5, trace_decay=0.5)
        np.testing.assert_allclose(found[:2, 0], wanted)


# ---- V-trace ---------------------------------------------------------------------------------


def vtrace_twin(segment, values, rho, gamma, lambda_, rho_clip, policy_rho_clip):
    """v_s + sum_k gamma^(k-s) (prod c) delta_k, and the advantage; NaN where there is no step."""
    targets, advantages = np.full((T, B), np.nan), np.full((T, B), np.nan)
    for b in range(B):
        for start, end in episodes(segment, b):
            steps = range(start, end)
            g = {t: gamma * segment.discount[t, b] for t in steps}
            v = {t: values[t, b] for t in range(start, end + 1)}
            r = {t: segment.reward[t, b] for t in steps}
            for s in steps:
                total = v[s]
                for k in range(s, end):
                    delta = min(rho_clip, rho[k, b]) * (r[k] + g[k] * v[k + 1] - v[k])
                    traces = [g[i] * lambda_ * min(1.0, rho[i, b]) for i in range(s, k)]
                    total += np.prod(traces) * delta
                targets[s, b] = total
            for s in steps:
                following = v[s + 1]
                if s + 1 < end:
                    following = lambda_ * targets[s + 1, b] + (1 - lambda_) * v[s + 1]
                better = r[s] + g[s] * following - v[s]
                advantages[s, b] = min(policy_rho_clip, rho[s, b]) * better
    return targets, advantages


def ratios(seed: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(size=(T, B)))


def wide(segment: Segment) -> Segment:
    """In 64 bits."""
    numbers = {name: np.float64(getattr(segment, name)) for name in ("reward", "discount", "mask")}
    return segment._replace(**numbers)


@given(
    seed=st.integers(0, 2**20),
    same_step=st.booleans(),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lambda_=st.sampled_from([0.0, 0.7, 1.0]),
    clips=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (3.0, 0.8)]),
)
def test_vtrace_against_its_definition(x64, seed, same_step, gamma, lambda_, clips):
    segment = wide(make_segment(seed, same_step=same_step))
    values, rho = np.float64(values_of(seed + 1)), ratios(seed + 2)
    found = vtrace(
        segment,
        jnp.asarray(values),
        jnp.log(rho),
        discount=gamma,
        trace_decay=lambda_,
        rho_clip=clips[0],
        policy_rho_clip=clips[1],
    )
    wanted = vtrace_twin(segment, values, rho, gamma, lambda_, *clips)
    steps = segment.mask > 0
    for ours, theirs in zip(found, wanted, strict=True):
        assert (np.isnan(theirs) == ~steps).all()
        np.testing.assert_allclose(np.asarray(ours)[steps], theirs[steps], rtol=1e-12, atol=1e-12)


@given(
    seed=st.integers(0, 2**20),
    same_step=st.booleans(),
    lambda_=st.sampled_from([0.0, 0.7, 1.0]),
)
def test_vtrace_of_ones_own_actions_is_lambda_returns(x64, seed, same_step, lambda_):
    segment = wide(make_segment(seed, same_step=same_step))
    values = jnp.asarray(np.float64(values_of(seed + 1)))
    found = vtrace(
        segment,
        values,
        jnp.zeros((T, B)),
        discount=0.9,
        trace_decay=lambda_,
        rho_clip=1.0,
        policy_rho_clip=1.0,
    )
    returns = lambda_returns(segment, values, discount=0.9, trace_decay=lambda_)
    steps = segment.mask > 0
    for ours, wanted in ((found.value, returns), (found.advantage, returns - values[:-1])):
        np.testing.assert_allclose(ours[steps], wanted[steps], rtol=1e-12, atol=1e-12)


def test_nothing_of_another_episode_leaks_into_vtrace():
    segment, values, rho = make_segment(5), values_of(6), np.float32(ratios(7))
    costs = {"discount": 0.9, "trace_decay": 0.9, "rho_clip": 2.0, "policy_rho_clip": 2.0}
    before = vtrace(segment, values, np.log(rho), **costs)
    values[segment.first] = HUGE  # an episode's first value tells of nothing that came before
    nothing = segment.mask == 0
    segment.reward[nothing] = HUGE
    segment.discount[nothing] = 5
    rho[nothing] = HUGE
    after = vtrace(segment, values, np.log(rho), **costs)
    # what HUGE may change is the step that an episode starts with, by its own value
    own = segment.first[:-1]
    assert (nothing | own).mean() < 0.6
    for old, new in zip(before, after, strict=True):
        kept = ~nothing & ~own
        np.testing.assert_array_equal(np.asarray(new)[kept], np.asarray(old)[kept])
