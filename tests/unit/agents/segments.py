"""Segments of several episodes, for tests of what is summed up inside them."""

import numpy as np

from snaprl.agents import Segment

T, B = 14, 8


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
