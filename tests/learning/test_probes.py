"""The smallest environments: a learner that misses their values is wrong in a part we can name."""

import numpy as np
import pytest
from learning.probe import DISCOUNT, learned

SEEDS = [0, 1, 2]
everything = pytest.mark.learning


def test_the_action_that_is_rewarded_is_taken():
    _, (probability,) = learned("action_reward", 0, [[0.0]], updates=400)
    assert probability[0] > 0.9


@everything
@pytest.mark.parametrize("seed", SEEDS)
def test_a_value_is_learned(seed):
    (value,), _ = learned("constant_reward", seed, [[0.0]])
    np.testing.assert_allclose(value, 1, atol=0.05)


@everything
@pytest.mark.parametrize("seed", SEEDS)
def test_a_value_depends_on_what_is_seen(seed):
    (plus, minus), _ = learned("observed_reward", seed, [[1.0], [-1.0]])
    np.testing.assert_allclose([plus[0], minus[0]], [1, -1], atol=0.1)


@everything
@pytest.mark.parametrize("seed", SEEDS)
def test_a_value_counts_on_what_comes_discounted(seed):
    (values,), _ = learned("delayed_reward", seed, [[0.0, 1.0]])
    np.testing.assert_allclose(values, [DISCOUNT, 1], atol=0.1)


@everything
@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_is_learned(seed):
    _, (probability,) = learned("action_reward", seed, [[0.0]])
    assert probability[0] > 0.9


@everything
@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_depends_on_what_is_seen(seed):
    _, (plus, minus) = learned("matching_reward", seed, [[1.0], [-1.0]])
    assert plus[0] > 0.9
    assert minus[0] < 0.1
