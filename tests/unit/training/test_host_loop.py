"""The loop over gymnasium's vector environments, in each of the three ways they start anew."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from unit.training.loops import (
    GAMMA,
    LAMBDA,
    LENGTH,
    MAZE_READ,
    TIMEOUT,
    maze_agent,
    replay,
    segments,
    spying,
    unrolled,
)

from snaprl.agents import ActorCriticLoss, NetworkConfig, RecurrentActorCritic, make_agent
from snaprl.agents.returns import lambda_returns
from snaprl.cores import BPTT, CoreState
from snaprl.envs import PureVectorEnv, TMaze
from snaprl.training.actors import Actor, ActorLoop, LocalEngine
from snaprl.training.host_envs import EnvironmentFailed, HostEnvs

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
B, STEPS = 3, 26
# how long an episode is, whether it ends, whether it is cut: they follow each other in this order
SCRIPT = [(3, True, False), (2, False, True), (4, True, True), (1, False, True)]
SCRIPTED_SPACE = spaces.Dict(
    {"place": spaces.Box(-9, 9, (2,), np.float32), "kind": spaces.Tuple([spaces.Discrete(4)])}
)


class Scripted(gymnasium.Env):
    """Goes through `SCRIPT` whatever is done; copy k starts with episode k."""

    observation_space = SCRIPTED_SPACE
    action_space = spaces.Discrete(2)

    def __init__(self, episode: int):
        self._episode, self._time = episode - 1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode, self._time = self._episode + 1, 0
        return self._observe(), {"success": False}

    def step(self, action):
        length, terminates, truncates = SCRIPT[self._episode % len(SCRIPT)]
        assert self._time < length, "stepped beyond the end"
        self._time += 1
        over = self._time == length
        success = over and length > 2
        reward = self.reward(self._episode, self._time)
        info = {"success": success}
        return self._observe(), reward, over and terminates, over and truncates, info

    def _observe(self):
        return self.observation(self._episode, self._time)

    @staticmethod
    def observation(episode, time):
        place = np.array([np.sin(episode + time), np.cos(episode + 2 * time)], np.float32)
        return {"place": place, "kind": (np.int64(episode % 4),)}

    @staticmethod
    def reward(episode, time):
        return float(episode + 0.1 * time)


def make_envs(mode: AutoresetMode) -> HostEnvs:
    makers = [lambda k=k: Scripted(k) for k in range(B)]
    return HostEnvs(SyncVectorEnv(makers, autoreset_mode=mode))


def by_hand(b: int, transitions: int) -> list[dict]:
    """The first transitions of a stream, from the script."""
    rows, episode = [], b
    while len(rows) < transitions:
        length, terminates, truncates = SCRIPT[episode % len(SCRIPT)]
        for time in range(1, length + 1):
            over = time == length
            rows.append(
                {
                    "reward": Scripted.reward(episode, time),
                    "ended": over,
                    # what both ends and is cut has ended
                    "truncated": over and truncates and not terminates,
                    "success": over and length > 2,
                    "episode_length": time,
                    "episode_return": sum(Scripted.reward(episode, t + 1) for t in range(time)),
                    "following": Scripted.observation(episode, time),
                }
            )
        episode += 1
    return rows[:transitions]


def assert_observation(found, b, wanted):
    row = jax.tree.map(lambda x: x[b], found)
    jax.tree.map(np.testing.assert_array_equal, row, wanted)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_steps_are_those_of_the_script(mode):
    envs = make_envs(mode)
    assert envs.mode is mode
    assert not envs.can_snapshot
    observation = envs.reset(seed=0)
    assert_observation(observation, 2, Scripted.observation(2, 0))
    wanted = [iter(by_hand(b, STEPS)) for b in range(B)]
    episode, seen, was_over = list(range(B)), [0] * B, [False] * B
    for _ in range(STEPS):
        out = envs.step(np.zeros(B, int))
        for b in range(B):
            if mode is AutoresetMode.NEXT_STEP and was_over[b]:
                assert (out.mask[b], out.first[b], out.reward[b], out.discount[b]) == (0, 1, 0, 1)
                assert not out.ended[b]
                assert_observation(out.observation, b, Scripted.observation(episode[b], 0))
                was_over[b] = False
                continue
            row = next(wanted[b])
            seen[b] += 1
            assert out.mask[b] == 1
            for name in ("reward", "ended", "truncated", "success"):
                assert getattr(out, name)[b] == row[name], name
            assert out.episode_length[b] == row["episode_length"]
            np.testing.assert_allclose(out.episode_return[b], row["episode_return"])
            terminated = row["ended"] and not row["truncated"]
            if row["ended"]:
                was_over[b] = True
                episode[b] += 1
            if mode is AutoresetMode.NEXT_STEP:
                assert out.final_observation is None
                assert (out.discount[b], out.first[b]) == (not terminated, False)
                assert_observation(out.observation, b, row["following"])
            else:
                # the last observation is not in the stream, so nothing of the stream counts on
                assert (out.discount[b], out.first[b]) == (not row["ended"], row["ended"])
                if row["ended"]:
                    assert_observation(out.final_observation, b, row["following"])
                    assert_observation(out.observation, b, Scripted.observation(episode[b], 0))
                else:
                    assert_observation(out.observation, b, row["following"])
    assert min(seen) > 15
    assert envs.knows_success
    envs.close()


NETWORK = NetworkConfig(features=3, method=BPTT(), last_action=False, last_reward=False)
READ = {"observation": {"place": 0, "kind": (0,)}}


def make_loop(agent, envs: HostEnvs, unroll: int) -> ActorLoop:
    """A loop with one actor, whose learner hands the segments out."""
    engine = LocalEngine([Actor(agent, envs, unroll=unroll, discount=GAMMA)])
    one = {"actors": 1, "per_update": 1, "window": 1}
    return ActorLoop(agent, spying(agent), engine, streams=B, unroll=unroll, **one)


@pytest.fixture(scope="module")
def runs():
    """For each mode `(segment, values, chunk)` of one long segment, with the same parameters."""
    loss = ActorCriticLoss(discount=GAMMA, trace_decay=LAMBDA)
    agent = make_agent(SCRIPTED_SPACE, Scripted.action_space, NETWORK, loss)
    net = RecurrentActorCritic(NETWORK, NETWORK.observed(SCRIPTED_SPACE, spaces.Discrete(2)), 2)
    found = {}
    for mode in MODES:
        loop = make_loop(agent, make_envs(mode), STEPS)
        state = loop.init(jax.random.key(0))
        variables = jax.device_get(state.learner.variables)
        _, chunk = loop.run(state, 1)
        (segment,) = segments(chunk.metrics, READ)
        carry = CoreState(segment.hidden, ())
        values = jax.jit(net.apply)(variables, carry, segment.observation, segment.first)[2]
        found[mode] = segment, np.asarray(values), chunk
        loop.close()
    return found


def returns_of(segment, values) -> list[np.ndarray]:
    """Of every stream the lambda-returns of its transitions."""
    found = lambda_returns(segment, values, discount=GAMMA, trace_decay=LAMBDA)
    return [np.asarray(found)[segment.mask[:, b] > 0, b] for b in range(B)]


def whole_episodes(b: int, transitions: int) -> int:
    """How many of so many transitions lie in episodes that ended."""
    ended = [row["ended"] for row in by_hand(b, transitions)]
    return max(k + 1 for k, over in enumerate(ended) if over)


def twin(segment, values, b) -> list[float]:
    """Lambda-returns of a stream in NEXT_STEP mode, episode by episode, from the script."""
    found = []
    t, rows = 0, by_hand(b, int(segment.mask[:, b].sum()))
    while rows:
        length = next((k + 1 for k, row in enumerate(rows) if row["ended"]), None)
        if length is None:
            break
        episode, rows = rows[:length], rows[length:]
        last = values[t + length, b] if episode[-1]["truncated"] else 0.0
        returns = [episode[-1]["reward"] + GAMMA * last]
        for k in reversed(range(length - 1)):
            mixed = (1 - LAMBDA) * values[t + k + 1, b] + LAMBDA * returns[0]
            returns.insert(0, episode[k]["reward"] + GAMMA * mixed)
        found += returns
        t += length + 1
    return found


def test_returns_are_the_same_however_episodes_follow_each_other(runs):
    segment, values, _ = runs[AutoresetMode.NEXT_STEP]
    wanted = returns_of(segment, values)
    for b in range(B):
        slow = twin(segment, values, b)
        assert len(slow) > 10
        np.testing.assert_allclose(wanted[b][: len(slow)], slow, rtol=1e-5)
    for mode in MODES[1:]:
        segment, values, _ = runs[mode]
        assert segment.mask.all()
        for b, ours in enumerate(returns_of(segment, values)):
            n = whole_episodes(b, len(wanted[b]))
            np.testing.assert_allclose(ours[:n], wanted[b][:n], rtol=1e-5)


def test_only_a_cut_episode_counts_on(runs):
    segment, _, _ = runs[AutoresetMode.NEXT_STEP]
    kinds = SCRIPT * 9
    ends = [np.flatnonzero(segment.first[1:, b]) - 1 for b in range(B)]  # each end's step
    for b in range(B):
        for k, t in enumerate(ends[b]):
            assert segment.discount[t, b] == (0 if kinds[b + k][1] else 1)
    segment, values, _ = runs[AutoresetMode.SAME_STEP]
    for b in range(B):
        for k, t in enumerate(np.flatnonzero(segment.first[1:, b])):
            length, terminates, _ = kinds[b + k]
            promised = segment.reward[t, b] - Scripted.reward(b + k, length)
            assert segment.discount[t, b] == 0
            assert (abs(promised) > 1e-6) == (not terminates)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_sums_over_episodes_are_exact(runs, mode):
    segment, _, chunk = runs[mode]
    rows = [row for b in range(B) for row in by_hand(b, int(segment.mask[:, b].sum()))]
    over = [row for row in rows if row["ended"]]
    assert chunk.episodes["episodes"] == len(over)
    assert chunk.episodes["success"] == sum(row["success"] for row in over)
    for name in ("episode_return", "episode_length"):
        np.testing.assert_allclose(chunk.episodes[name], sum(row[name] for row in over))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_learned_from_a_reward_may_be_clipped(runs, mode):
    """Never what a cut episode promises, nor what episodes are measured by."""
    most = 1.5
    loss = ActorCriticLoss(discount=GAMMA, trace_decay=LAMBDA)
    agent = make_agent(SCRIPTED_SPACE, Scripted.action_space, NETWORK, loss, reward_clip=most)
    loop = make_loop(agent, make_envs(mode), STEPS)
    _, chunk = loop.run(loop.init(jax.random.key(0)), 1)
    (segment,) = segments(chunk.metrics, READ)
    plain, values, whole = runs[mode]
    promised = np.zeros_like(plain.reward)
    for b in range(B):
        rows = by_hand(b, int(plain.mask[:, b].sum()))
        earned = np.array([row["reward"] for row in rows])
        promised[plain.mask[:, b] > 0, b] = plain.reward[plain.mask[:, b] > 0, b] - earned
    assert (np.abs(promised) > 1e-6).any() == (mode is not AutoresetMode.NEXT_STEP)
    wanted = np.clip(plain.reward - promised, -most, most) + promised
    assert (np.abs(plain.reward - promised) > most).any()
    np.testing.assert_allclose(segment.reward, wanted, atol=1e-5)
    assert chunk.episodes == whole.episodes
    loop.close()


def test_segments_over_a_maze_are_what_happened():
    agent = maze_agent()
    vector = PureVectorEnv(TMaze(length=LENGTH, timeout=TIMEOUT).make(), B)
    loop = make_loop(agent, HostEnvs(vector), 4)
    state = loop.init(jax.random.key(0))
    variables = jax.device_get(state.learner.variables)
    _, chunk = loop.run(state, 20)
    history = segments(chunk.metrics, MAZE_READ)
    sums = replay(history)
    assert sums.episodes > 10
    for name, value in sums._asdict().items():
        np.testing.assert_allclose(chunk.episodes[name], value, rtol=1e-5)
    unroll = jax.jit(unrolled)
    for segment, following in zip(history, history[1:], strict=False):
        log_prob, hidden = unroll(variables, segment)
        np.testing.assert_allclose(log_prob, segment.behaviour_log_prob, atol=1e-6)
        np.testing.assert_allclose(hidden, following.hidden, atol=1e-6)


def test_a_snapshot_brings_the_environments_back():
    vector = PureVectorEnv(TMaze(length=LENGTH, timeout=TIMEOUT).make(), B)
    envs = HostEnvs(vector)
    envs.reset(seed=1)
    actions = np.random.default_rng(0).integers(0, 3, (30, B))
    for action in actions[:13]:
        envs.step(action)
    saved = envs.snapshot()
    rest = [envs.step(action) for action in actions[13:]]
    envs.restore(saved)
    again = [envs.step(action) for action in actions[13:]]
    jax.tree.map(np.testing.assert_array_equal, again, rest)


class Misshapen(gymnasium.Env):
    """What it says of its observations, and what it gives in its second step."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, space, given):
        self.observation_space, self._given, self._time = space, given, 0

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        self._time += 1
        seen = self._given if self._time == 2 else self.observation_space.sample()
        return seen, 0.0, False, False, {}


BOX = gymnasium.spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    ("space", "given", "sentence"),
    [
        (BOX, np.zeros(4), r"observation of shape \(4,\), where its space says \(3,\)"),
        (
            gymnasium.spaces.Dict(near=BOX, far=BOX),
            {"near": np.zeros(3), "far": np.zeros(2)},
            r"observation/far of shape \(2,\), where its space says \(3,\)",
        ),
        (
            gymnasium.spaces.Dict(near=BOX, far=BOX),
            {"near": np.zeros(3)},
            "observation without the parts that its space has",
        ),
    ],
)
def test_an_observation_of_another_shape_is_named(space, given, sentence):
    def make(given):
        return lambda: Misshapen(space, given)

    envs = HostEnvs(SyncVectorEnv([make(space.sample()), make(given)]))
    envs.reset(seed=0)
    envs.step(np.zeros(2, int))
    with pytest.raises(EnvironmentFailed, match=f"^the environment of stream 1 gave {sentence}$"):
        envs.step(np.zeros(2, int))


class Growing(Scripted):
    """Remembers what a checkpoint has no room for, or what it does not tell."""

    def __init__(self, remembers: list):
        super().__init__(0)
        self.remembers = remembers

    def get_state(self):
        return self.remembers[self._time]

    def set_state(self, state):
        raise KeyError("nobody knows")


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ([1, 2], "state changes its form: get_state() must return numbers"),
        (["x"], "Growing holds 'x' in its state: get_state() must return numbers"),
        (None, "state changes its form: get_state() must return numbers"),
    ],
)
def test_a_state_that_cannot_be_kept_is_one_sentence(second, sentence):
    vector = SyncVectorEnv([lambda: Growing([[1], [5], second])] * 2)
    envs = HostEnvs(vector)
    assert envs.can_snapshot
    envs.reset(seed=0)
    saved = envs.snapshot()
    envs.step(np.zeros(2, int))
    envs.snapshot()
    envs.step(np.zeros(2, int))
    with pytest.raises(EnvironmentFailed) as caught:
        envs.snapshot()
    assert sentence in str(caught.value)
    assert "raised" not in str(caught.value)
    envs.step(np.zeros(2, int))
    with pytest.raises(EnvironmentFailed, match="the environment raised IndexError"):
        envs.snapshot()
    envs.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match=r"raised KeyError: 'nobody knows' \(.*py, line"):
        envs.restore(saved)
