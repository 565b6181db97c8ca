"""Policies: probabilities against numpy, and actions that the environment takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from snaprl.agents.policy import Policy
from snaprl.agents.policy import policy_for as make

RNG = np.random.default_rng(0)
DRAWS = 20_000
BOX = spaces.Box(np.float32([-3.0, 0.0]), np.float32([1.0, 10.0]))
SPACES = {
    "discrete": spaces.Discrete(4),
    "discrete from 5": spaces.Discrete(4, start=5),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi discrete from somewhere": spaces.MultiDiscrete([3, 2], start=[1, -4]),
    "box": BOX,
    "box without bounds": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "box with one bound": spaces.Box(0.0, np.inf, (2,), np.float32),
    "box with two axes": spaces.Box(-1, 1, (2, 3), np.float32),
    "box without axes": spaces.Box(-1, 1, (), np.float32),
    "wide box": spaces.Box(-1, 1, (2,), np.float64),
}


def policy_for(space) -> Policy:
    """One whose functions are compiled: op by op they take a second each."""
    policy = make(space)
    names = ("sample", "mode", "log_prob", "entropy", "to_env")
    return policy._replace(**{name: jax.jit(getattr(policy, name)) for name in names})


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logits_of(policy, lead=()):
    return RNG.normal(size=(*lead, policy.size)).astype(np.float32)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_shapes_and_that_the_environment_takes_the_actions(space):
    policy, lead = policy_for(space), (4, 5)

    @jax.jit
    def all_of_it(logits, key):
        found = []
        for action in (policy.mode(logits), policy.sample(logits, key)):
            found.append((action, policy.log_prob(logits, action), policy.to_env(action)))
        return found, policy.entropy(logits)

    found, entropy = all_of_it(jnp.asarray(logits_of(policy, lead)), jax.random.key(0))
    for action, log_prob, given in found:
        assert action.shape == (*lead, *space.shape)
        assert log_prob.shape == lead
        for one in np.asarray(given).reshape(-1, *space.shape):
            assert space.contains(np.asarray(one, space.dtype)), one
    assert entropy.shape == lead
    (_, highest, _), (_, some, _) = found
    assert (highest >= some).all()


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_no_action_is_one_that_past_actions_could_have_been(space):
    policy = policy_for(space)
    assert policy.none.shape == space.shape
    action = jax.eval_shape(policy.mode, jnp.zeros(policy.size))
    assert policy.none.dtype == action.dtype
    assert policy.observed.shape == space.shape
    if not isinstance(space, spaces.Box):
        assert (policy.none == -1).all()


def test_discrete_against_numpy():
    policy = policy_for(spaces.Discrete(4, start=5))
    logits = logits_of(policy, (3,))
    log_p = log_softmax(logits.astype(np.float64))
    action = np.array([0, 3, 1])
    wanted = log_p[np.arange(3), action]
    np.testing.assert_allclose(policy.log_prob(logits, action), wanted, rtol=1e-5)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    np.testing.assert_allclose(policy.entropy(logits), entropy, rtol=1e-5)
    np.testing.assert_array_equal(policy.to_env(jnp.asarray(action)), action + 5)


def test_multi_discrete_against_numpy():
    policy = policy_for(spaces.MultiDiscrete([3, 2], start=[1, -4]))
    logits = logits_of(policy, (2,))
    parts = [log_softmax(part.astype(np.float64)) for part in (logits[:, :3], logits[:, 3:])]
    action = np.array([[2, 0], [1, 1]])
    wanted = sum(part[np.arange(2), action[:, k]] for k, part in enumerate(parts))
    np.testing.assert_allclose(policy.log_prob(logits, action), wanted, rtol=1e-5)
    entropy = sum(-(np.exp(part) * part).sum(-1) for part in parts)
    np.testing.assert_allclose(policy.entropy(logits), entropy, rtol=1e-5)
    np.testing.assert_array_equal(policy.to_env(jnp.asarray(action)), action + [1, -4])


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=str)
def test_gaussian_against_numpy(shape):
    policy = policy_for(spaces.Box(-1, 1, shape, np.float32))
    size = int(np.prod(shape))
    logits = logits_of(policy, (4,))
    mean, scale = logits[:, :size], np.exp(np.clip(logits[:, size:], -5, 2))
    action = RNG.normal(size=(4, *shape)).astype(np.float32)
    z = (action.reshape(4, size) - mean) / scale
    wanted = (-0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(policy.log_prob(logits, action), wanted, rtol=1e-4)
    entropy = (0.5 * np.log(2 * np.pi * np.e) + np.log(scale)).sum(-1)
    np.testing.assert_allclose(policy.entropy(logits), entropy, rtol=1e-4)
    np.testing.assert_allclose(policy.mode(logits), mean.reshape(4, *shape), rtol=1e-6)


def test_samples_come_as_often_as_they_are_likely():
    policy = policy_for(spaces.MultiDiscrete([3, 2]))
    logits = logits_of(policy)
    drawn = policy.sample(jnp.tile(logits, (DRAWS, 1)), jax.random.key(0))
    for k, part in enumerate((logits[:3], logits[3:])):
        p = np.exp(log_softmax(part))
        often = np.bincount(np.asarray(drawn[:, k]), minlength=len(p)) / DRAWS
        np.testing.assert_allclose(often, p, atol=4 * 0.5 / np.sqrt(DRAWS))
    # both entries are drawn on their own
    joint = np.corrcoef(np.asarray(drawn[:, 0] == 0), np.asarray(drawn[:, 1] == 0))[0, 1]
    assert abs(joint) < 4 / np.sqrt(DRAWS)


def test_gaussian_samples_have_mean_and_spread():
    policy = policy_for(spaces.Box(-1, 1, (2,), np.float32))
    logits = jnp.array([0.5, -1.0, np.log(0.1), np.log(2.0)])
    drawn = policy.sample(jnp.tile(logits, (DRAWS, 1)), jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(0), [0.5, -1.0], atol=4 * 2 / np.sqrt(DRAWS))
    np.testing.assert_allclose(drawn.std(0), [0.1, 2.0], rtol=0.03)


def test_a_scale_can_neither_vanish_nor_explode():
    policy = policy_for(spaces.Box(-1, 1, (1,), np.float32))
    for log_scale in (-1e3, 1e3):
        logits = jnp.array([0.0, log_scale])
        assert np.isfinite(policy.log_prob(logits, jnp.array([0.3])))
        assert np.isfinite(policy.entropy(logits))


def test_one_stands_for_a_bound_and_beyond_it_is_clipped():
    to_env = policy_for(BOX).to_env
    np.testing.assert_allclose(to_env(jnp.array([-1.0, -1.0])), BOX.low)
    np.testing.assert_allclose(to_env(jnp.array([1.0, 1.0])), BOX.high)
    np.testing.assert_allclose(to_env(jnp.array([0.0, 0.5])), [-1.0, 7.5])
    np.testing.assert_allclose(to_env(jnp.array([-7.0, 9.0])), [-3.0, 10.0])
    free = policy_for(SPACES["box without bounds"]).to_env
    np.testing.assert_allclose(free(jnp.array([-7.0, 9.0])), [-7.0, 9.0])
    half = policy_for(SPACES["box with one bound"]).to_env
    np.testing.assert_allclose(half(jnp.array([-7.0, 9.0])), [0.0, 9.0])


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 5, (2,), np.int32), spaces.MultiDiscrete([[2, 2]]), spaces.MultiBinary(2)],
    ids=str,
)
def test_what_has_no_policy_is_said(space):
    with pytest.raises(
        ValueError, match=r"^the action space .* is not supported; Discrete, .* are$"
    ):
        policy_for(space)
