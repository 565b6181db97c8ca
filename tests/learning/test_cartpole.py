"""CartPole without velocities is balanced by what is remembered."""

import pytest

from snaprl.training import config
from snaprl.training.run import Run, evaluate

pytestmark = pytest.mark.learning


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["cartpole_masked_impala", "cartpole_masked_ppo"])
def test_velocities_are_remembered(name, seed, tmp_path):
    run = Run(config.load(name, {"seed": seed}), tmp_path / "run")
    run.train()
    scores = evaluate(run.folder, episodes=100)
    assert scores["eval_greedy_episode_return"] >= 475
    assert scores["eval_episode_return"] >= 450  # 475 is the aim; what is drawn differs by machine
