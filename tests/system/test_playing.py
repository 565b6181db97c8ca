"""Trained runs from Python: what is loaded plays as the command does, and wrong things are said."""

import re
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from system.command import STEPS

import snaprl.training
from snaprl.agents import ActorCriticLoss, NetworkConfig, make_agent
from snaprl.training import Player, Run, config, load
from snaprl.training.build import make_envs
from snaprl.training.errors import UserError
from snaprl.training.evaluate import host_evaluator
from snaprl.training.host_envs import HostEnvs
from snaprl.training.plot import plot
from snaprl.training.run import evaluate, read
from snaprl.training.schema import AgentConfig, Config

SMALL = {"agent.features": 4, "training.streams": 4, "training.unroll": 4, "training.steps": 128}
LEARNS = {
    "env.kwargs.length": 4,
    "agent.features": 16,
    "optimizer.learning_rate": 1e-2,
    "training.streams": 16,
    "training.steps": 24_000,
    "evaluation.episodes": 64,
}


class Recorded(HostEnvs):
    """Remembers the seed that it was reset with, and what was done."""

    def reset(self, seed):
        self.seed, self.actions, self.successes = seed, [], []
        return super().reset(seed)

    def step(self, action):
        out = super().step(action)
        self.actions.append(np.array(action))
        self.successes += out.success[out.ended].tolist()
        return out


def play(player: Player, there: Recorded, seed: int, steps: int, **how) -> None:
    """Plays a number of steps in all streams."""
    streams = there.streams
    observation, reward, first = there.reset(seed), np.zeros(streams), np.ones(streams, bool)
    for _ in range(steps):
        out = there.step(player.act(observation, reward, first, **how))
        observation, reward, first = out.observation, out.reward, out.first


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cartpole") / "run"
    Run(config.load("cartpole", SMALL), folder).train()
    return folder


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learnt") / "run"
    Run(config.load("tmaze", LEARNS), str(folder)).train()
    return folder


@pytest.mark.parametrize("run", ["learnt", "cartpole"])
def test_a_loaded_policy_acts_as_the_evaluator_does(run, request):
    folder = request.getfixturevalue(run)
    saved, streams = read(folder), 3
    there = Recorded(make_envs(config.load(folder / "config.toml"), streams))
    options = {"episodes": 6, "greedy": True, "max_steps": 60}
    measure = host_evaluator(saved.built.agent, there, **options)
    measure(saved.state.learner.variables, jax.random.key(5))
    expected = np.array(there.actions)
    assert len(expected) > 10
    player = load(str(folder))
    player.reset(streams)
    play(player, there, there.seed, len(expected), greedy=True)
    np.testing.assert_array_equal(there.actions, expected)
    there.close()


def test_a_loaded_policy_does_what_was_learnt(learnt):
    there = Recorded(make_envs(config.load(learnt / "config.toml"), 16))
    player = load(learnt)
    player.reset(16)
    play(player, there, 1, 30, greedy=True)
    assert len(there.successes) >= 64
    assert np.mean(there.successes) == evaluate(str(learnt))["eval_greedy_success"] == 1.0
    play(player, there, 2, 30)
    assert np.mean(there.successes) > 0.9
    there.close()


def test_one_environment_is_a_stream_alone(learnt):
    """Without the axis of streams it gets the actions that it would get with it."""
    alone, beside = load(learnt), load(learnt)
    beside.reset(1)
    env = gymnasium.make("snaprl/TMaze-v0", **config.load(learnt / "config.toml").env.kwargs)
    returns = []
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        reward, first, over = 0.0, True, False
        returns.append(0.0)
        while not over:
            action = alone.act(observation, reward, first)
            (same,) = beside.act(observation[None], [reward], [first])
            assert action == same
            assert env.action_space.contains(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            first, over = False, terminated or truncated
            returns[-1] += float(reward)
    assert np.mean(returns) > 3


def test_draws_follow_from_the_seed(cartpole):
    player = load(cartpole)
    there = Recorded(make_envs(config.load(cartpole / "config.toml"), 2))

    def drawn(**how) -> np.ndarray:
        play(player, there, 0, 30, **how)
        return np.array(there.actions)

    player.reset(2, seed=1)
    once = drawn()
    player.reset(2, seed=1)
    np.testing.assert_array_equal(drawn(), once)
    player.reset(2, seed=2)
    assert (drawn() != once).any()
    player.reset(2, seed=1)
    assert (drawn(greedy=True) != once).any()
    there.close()


ODD = {  # spaces of observations and of actions
    "tuple": (
        spaces.Tuple((spaces.Discrete(3, start=-1), spaces.Box(-1, 1, (2,)))),
        spaces.Discrete(4, start=5),
    ),
    "dict": (
        spaces.Dict(b=spaces.MultiBinary(3), a=spaces.Box(0, 255, (4, 4, 3), np.uint8)),
        spaces.MultiDiscrete([2, 3]),
    ),
    "box": (spaces.Box(-1, 1, ()), spaces.Box(np.float32(-2), np.float32(7), (1, 2))),
}


@pytest.mark.parametrize(("observed", "acted"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("greedy", [True, False])
def test_actions_are_those_of_the_space(observed, acted, greedy):
    agent = make_agent(observed, acted, NetworkConfig(features=3), ActorCriticLoss())
    player = Player(agent, agent.init(jax.random.key(0), 1), observed)
    for first in (True, False):
        action = player.act(observed.sample(), 1.0, first, greedy=greedy)
        assert acted.contains(action), action
    player.reset(2)
    batch = jax.tree.map(lambda *xs: np.stack(xs), *(observed.sample() for _ in range(2)))
    actions = player.act(batch, np.zeros(2), np.ones(2, bool), greedy=greedy)
    assert all(acted.contains(action) for action in actions)


WRONG_STEPS = [
    (
        2,
        (np.zeros((3, 4)), [0, 0], [True, True]),
        "the observation is [3, 4], but of 2 streams it is [2, 4]",
    ),
    (2, (np.zeros(4), 0, True), "the observation is [4], but of 2 streams it is [2, 4]"),
    (None, (np.zeros((1, 4)), 0, True), "the observation is [1, 4], but of one "),
    (None, (np.zeros(4), [0.0], True), "the reward is [1], but of one environment "),
    (2, (np.zeros((2, 4)), [0, 0], True), "first is [], but of 2 streams it is [2]"),
    (None, ({"x": np.zeros(4)}, 0, True), "the observation is absent, but of one "),
]


@pytest.mark.parametrize(("streams", "step", "sentence"), WRONG_STEPS)
def test_a_step_of_another_shape_is_refused(cartpole, streams, step, sentence):
    player = load(cartpole)
    player.reset(streams)
    with pytest.raises(ValueError, match=re.escape(sentence) + r".*: Player\.reset\(streams\) "):
        player.act(*step)


def test_no_streams_are_refused(cartpole):
    with pytest.raises(ValueError, match="streams is 0: give 1 or more, or None for one env"):
        load(cartpole).reset(0)


def test_what_holds_no_policy_is_refused(tmp_path, cartpole):
    with pytest.raises(UserError, match=r"nowhere is no run: there is no config.toml in it"):
        load(tmp_path / "nowhere")
    (tmp_path / "config.toml").write_text(config.dumps(config.load("tmaze", SMALL)))
    with pytest.raises(UserError, match="there is no checkpoint in .*: nothing was trained there"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="has no best checkpoint: nothing was evaluated during"):
        load(str(cartpole), best=True)
    task = {"model.features": 3, "training.streams": 2, "training.steps": 64}
    Run(config.load("copy", task), tmp_path / "supervised").train()
    with pytest.raises(UserError, match="supervised run, which has no policy: .*run.read gives"):
        load(tmp_path / "supervised")


# ---- runs from Python ------------------------------------------------------------------------


def test_a_run_checks_its_config_before_anything(tmp_path):
    for wrong, sentence in (
        (Config(agent=AgentConfig(features=-3)), "'agent.features' must be at least 1, not -3"),
        ("tmaze", "'tmaze' is no Config and no SupervisedConfig: .*config.load makes one"),
    ):
        with pytest.raises(UserError, match=sentence):
            Run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_measured_and_drawn_by_the_name_of_its_folder(trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert evaluate("run", episodes=2)["step"] == STEPS
    assert plot(["run"], "drawn.png") == [Path("drawn.png"), Path("drawn.svg")]
    with pytest.raises(UserError, match="'run' is no list: name the folders of runs to plot in"):
        plot("run")


def test_a_run_is_called_by_its_folder(tmp_path):
    assert Run(Config(), tmp_path / "mine").name == "mine"
    assert not (tmp_path / "mine").exists()


def test_the_room_offers_what_it_says():
    assert {name: getattr(snaprl.training, name) for name in snaprl.training.__all__} == {
        "Config": Config,
        "Player": Player,
        "Run": Run,
        "load": load,
    }
    with pytest.raises(AttributeError, match="'snaprl.training' has no attribute 'Rnu'"):
        _ = snaprl.training.Rnu
