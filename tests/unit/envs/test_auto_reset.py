"""Two episodes in one stream are two episodes and the reset between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.envs.auto_reset import auto_reset
from snaprl.envs.probes import delayed_reward
from snaprl.envs.tmaze import TMaze

T = 60
TASKS = {
    "active": TMaze.protocol_a(3),
    "passive": TMaze(length=3, passive=True),
    "compass": TMaze.bakker(2),
}


@pytest.fixture(params=TASKS, ids=list(TASKS))
def task(request):
    return TASKS[request.param]


def stream(pure, seed):
    """Returns T steps [T, ...] with random actions, what began them, and what they were given."""
    env = auto_reset(pure)
    init_key, action_key, step_key = jax.random.split(jax.random.key(seed), 3)
    state, observation = env.init(init_key)
    actions = jax.random.randint(action_key, (T,), 0, env.action_space.n)
    keys = jax.random.split(step_key, T)
    _, steps = jax.jit(
        lambda state: jax.lax.scan(lambda s, x: env.step(s, *x), state, (actions, keys))
    )(state)
    return observation, jax.tree.map(np.asarray, steps), actions, keys, init_key


@pytest.mark.parametrize("seed", range(3))
def test_the_stream_is_what_a_driver_with_an_if_would_see(task, seed):
    pure = task.make()
    observation, steps, actions, keys, init_key = stream(pure, seed)
    state, expected = pure.reset(init_key)
    np.testing.assert_array_equal(observation, expected)
    ended, rewards, episodes = False, [], 0
    step = jax.jit(pure.step)
    for t in range(T):
        if ended:
            state, expected = pure.reset(keys[t])
            np.testing.assert_array_equal(steps.observation[t], expected)
            assert steps.first[t]
            assert steps.mask[t] == steps.reward[t] == steps.episode_length[t] == 0
            assert not steps.terminated[t]
            assert not steps.truncated[t]
            assert not steps.success[t]
            ended, rewards = False, []
        else:
            state, out = step(state, actions[t], keys[t])
            np.testing.assert_array_equal(steps.observation[t], out.observation)
            for name in ("reward", "terminated", "truncated", "success"):
                assert getattr(steps, name)[t] == getattr(out, name)
            assert not steps.first[t]
            assert steps.mask[t] == 1
            rewards.append(np.float32(out.reward))
            assert steps.episode_length[t] == len(rewards)
            np.testing.assert_allclose(steps.episode_return[t], sum(rewards), rtol=1e-6, atol=1e-6)
            ended = bool(out.terminated | out.truncated)
            episodes += ended
        assert steps.ended[t] == ended
    assert episodes >= 2


def test_an_episode_ends_once_and_the_next_begins_at_once(task):
    _, steps, *_ = stream(task.make(), 5)
    np.testing.assert_array_equal(steps.first[1:], steps.ended[:-1])
    np.testing.assert_array_equal(steps.mask, 1.0 - steps.first)
    np.testing.assert_array_equal(steps.ended, steps.terminated | steps.truncated)
    assert not (steps.terminated & steps.truncated).any()


def test_the_action_given_to_a_reset_is_ignored():
    env = auto_reset(delayed_reward())
    key = jax.random.key(0)
    state, _ = env.init(key)
    for _ in range(2):
        state, step = env.step(state, jnp.int32(0), key)
    assert step.ended
    results = [env.step(state, jnp.int32(action), key) for action in (0, 1)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_batch_is_a_loop():
    env = auto_reset(TMaze.protocol_a(2).make())
    keys = jax.random.split(jax.random.key(1), 5)
    states, _ = jax.vmap(env.init)(keys)
    for t in range(8):
        actions = jnp.array([0, 1, 2, 0, t % 3])
        after, steps = jax.vmap(env.step)(states, actions, keys)
        for b in range(5):
            one = env.step(jax.tree.map(lambda x, b=b: x[b], states), actions[b], keys[b])
            jax.tree.map(
                np.testing.assert_array_equal,
                jax.tree.map(lambda x, b=b: x[b], (after, steps)),
                one,
            )
        states = after


def test_new_episodes_get_new_cues():
    observation, steps, *_ = stream(TMaze(length=1, passive=True).make(), 0)
    del observation
    starts = steps.observation[steps.first]
    assert len(starts) == T // 3
    np.testing.assert_array_equal(starts[:, :2].sum(1), 1)
    assert 0 < starts[:, 0].sum() < len(starts)
