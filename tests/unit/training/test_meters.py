"""What a stretch of training came to."""

import numpy as np
import pytest

from snaprl.training.meters import Chunk, Divergence, check_finite, density, report

EPISODES = {"episodes": 4.0, "episode_return": 10.0, "episode_length": 6.0, "success": 3.0}


def chunk(updates=3, episodes=EPISODES, **metrics) -> Chunk:
    return Chunk(updates, {k: np.array(v, np.float32) for k, v in metrics.items()}, episodes)


def test_metrics_are_averaged_over_the_updates_that_were_made():
    # the fourth place was never written
    assert report(chunk(loss=[1, 2, 6, 1e9], gaps=[1, 0, 2, 99]), knows_success=True) == {
        "loss": 3.0,
        "gaps": 3.0,  # these are counted
        "episodes": 4.0,
        "episode_return": 2.5,
        "episode_length": 1.5,
        "success": 0.75,
    }


def test_density_is_that_of_the_masks_and_of_nothing_else():
    masks = {"hr": {"kernel": np.eye(4)}, "hz": {"kernel": np.ones((4, 4))}}
    core = {"cell": masks, "pattern": {"row": np.zeros(7, int)}}
    assert density({"params": {"x": np.zeros(5)}, "sparsity": {"core": core}}) == {"density": 0.625}
    assert density({"params": {"x": np.zeros(5)}}) == {}


def test_what_nobody_knows_is_left_out():
    assert "success" not in report(chunk(loss=[1, 2, 3]), knows_success=False)
    none_ended = dict.fromkeys(EPISODES, 0.0)
    found = report(chunk(loss=[1, 2, 3], episodes=none_ended), knows_success=True)
    assert found == {"loss": 2.0, "episodes": 0.0}


def check(*, first_update=0, **metrics) -> None:
    check_finite(chunk(**metrics), first_update=first_update, steps_per_update=8)


def test_finite_metrics_pass():
    check(loss=[1, 2, 3, np.nan], entropy=[0, 0, 0, np.inf])  # the fourth place is of no update


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_update_that_went_wrong_is_named(bad):
    with pytest.raises(Divergence) as caught:
        check(
            first_update=100, value=[1, 1, 1], loss=[1, bad, bad], norm=[1, 1, bad], a=[0, bad, 1]
        )
    assert str(caught.value) == "a, loss became NaN or infinite at update 101 (step 816)"
