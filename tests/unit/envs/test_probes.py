"""The probes have the values that they are known for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.envs.probes import PROBES


def episode(name, action, seed):
    """Returns (observation, reward, terminated) of every step of an episode."""
    env = PROBES[name]()
    key = jax.random.key(seed)
    state, observation = env.reset(key)
    seen = []
    for _ in range(3):
        assert np.asarray(observation) in env.observation_space
        state, out = env.step(state, jnp.int32(action), key)
        assert out.reward.dtype == jnp.float32
        assert not out.truncated | out.success
        seen.append((float(observation[0]), float(out.reward), bool(out.terminated)))
        observation = out.observation
        if out.terminated:
            return seen
    raise AssertionError("The episode does not end.")


@pytest.mark.parametrize("action", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_rewards(action, seed):
    sign = 2.0 * action - 1.0
    assert episode("constant_reward", action, seed) == [(0.0, 1.0, True)]
    assert episode("delayed_reward", action, seed) == [(0.0, 0.0, False), (1.0, 1.0, True)]
    assert episode("action_reward", action, seed) == [(0.0, sign, True)]
    ((observation, reward, _),) = episode("observed_reward", action, seed)
    assert reward == observation
    ((observation, reward, _),) = episode("matching_reward", action, seed)
    assert reward == observation * sign


def test_both_observations_occur():
    keys = jax.random.split(jax.random.key(0), 400)
    _, observations = jax.vmap(PROBES["observed_reward"]().reset)(keys)
    # 4 standard deviations of a sum of 400 signs: 80.
    assert set(np.unique(observations)) == {-1.0, 1.0}
    assert abs(observations.sum()) < 80


def test_a_probe_is_made_once():
    assert all(make() is make() for make in PROBES.values())
