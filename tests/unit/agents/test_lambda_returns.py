"""Lambda-returns in segments of several episodes, against their definition."""

import numpy as np
import pytest

from snaprl.agents import Segment
from snaprl.agents.actor_critic import lambda_returns

T, B = 14, 8
HUGE = 1e30


def make_segment(seed: int, *, same_step: bool = False) -> Segment:
    """Episodes of 1 to 4 steps, ended or cut; between them a step that is none, or nothing."""
    rng = np.random.default_rng(seed)
    first, mask, discount = np.zeros((T + 1, B), bool), np.ones((T, B)), np.ones((T, B))
    for b in range(B):
        left = rng.integers(0, 5)  # 0: the segment before ended with the episode
        if same_step:
            left += 1
        for t in range(T):
            if left == 0:
                mask[t, b], first[t + 1, b], left = 0, True, rng.integers(1, 5)
                continue
            left -= 1
            if left == 0:
                discount[t, b] = rng.integers(0, 2)
                if same_step:  # what is cut has its last value in the reward already
                    discount[t, b], first[t + 1, b], left = 0, True, rng.integers(1, 5)
    reward = rng.normal(size=(T, B)) * mask
    numbers = (x.astype(np.float32) for x in (reward, discount, mask))
    return Segment((), first, None, *numbers, None, (), None, None)


def episodes(segment: Segment, b: int):
    """The transitions of a stream as `(start, end)`: values `start` to `end` are of one episode."""
    start = 0
    while start < T:
        if not segment.mask[start, b]:
            start += 1
            continue
        end = start + 1
        while end < T and segment.mask[end, b] and not segment.first[end, b]:
            end += 1
        yield start, end
        start = end


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
