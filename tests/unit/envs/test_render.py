"""The picture and the letters show where the agent is and where it should go."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.envs import pixel_font, tmaze_render
from snaprl.envs.tmaze import LEFT, RIGHT, TMaze, TMazeState


def state(position, cue=LEFT, time=0):
    return TMazeState(np.int32(position), np.int32(cue), np.int32(time))


@given(length=st.integers(1, 2000), data=st.data())
def test_start_agent_and_junction_are_always_drawn(length, data):
    position = data.draw(st.integers(0, length))
    slots = tmaze_render.slots(length, position)
    cells = [cell for cell in slots if cell is not None]
    assert len(slots) == min(length + 1, 15)
    assert {0, position, length} <= set(cells)
    assert cells == sorted(set(cells))
    for i, cell in enumerate(slots):
        if cell is None:  # stands for at least one cell, and never next to another gap
            assert slots[i + 1] - slots[i - 1] >= 2
        elif i and slots[i - 1] is not None:
            assert cell == slots[i - 1] + 1


def test_letters():
    assert tmaze_render.text(TMaze(length=4), state(0)) == (
        "    G\nA...+\n    x\nstep 0  cell 0/4  cue left: shown\n"
    )
    assert tmaze_render.text(TMaze(length=4), state(2, RIGHT, 3)) == (
        "    x\nS.A.+\n    G\nstep 3  cell 2/4  cue right: hidden\n"
    )
    solved = tmaze_render.text(TMaze(length=4), state(6, RIGHT, 5))
    assert solved.splitlines()[2] == "    A"
    assert solved.endswith("solved\n")
    assert "S.~....A....~.+" in tmaze_render.text(TMaze(length=100), state(50))


@pytest.mark.parametrize(
    ("task", "at", "verdict"),
    [
        (TMaze(length=3), state(2, LEFT, 2), ""),
        (TMaze(length=3), state(4, LEFT, 4), "solved"),
        (TMaze(length=3), state(5, RIGHT, 4), "solved"),
        (TMaze(length=3), state(4, RIGHT, 4), "wrong turn"),
        (TMaze(length=3, passive=True), state(3, RIGHT, 3), ""),
        (TMaze(length=3, passive=True), state(3, RIGHT, 4), "no turn"),
        (TMaze(length=3, timeout=6), state(3, RIGHT, 6), "timeout"),
    ],
)
def test_outcome(task, at, verdict):
    assert tmaze_render.outcome(task, at) == verdict


def count(image, colour):
    return int((image == np.array(colour)).all(-1).sum())


@pytest.mark.parametrize("length", [1, 2, 10, 14, 15, 100, 5000])
def test_a_picture_has_one_size_and_everything_in_it(length):
    task = TMaze(length=length)
    for position in {0, 1, length // 2, length, length + 1, length + 2}:
        image = tmaze_render.picture(task, state(position))
        assert image.shape == (264, 760, 3)
        assert image.dtype == np.uint8
        assert count(image, tmaze_render.BLUE) > 300
        assert count(image, tmaze_render.PALE_GREEN) > 300
        assert count(image, tmaze_render.PALE_RED) > 300
        assert (image[0] == tmaze_render.PAPER).all()
        assert (image[:, 0] == tmaze_render.PAPER).all()
        assert (image[:, -1] == tmaze_render.PAPER).all()


def test_the_agent_moves_right_and_the_goal_is_on_the_cues_side():
    task = TMaze(length=10)

    def centre(image, colour):
        return np.argwhere((image == np.array(colour)).all(-1)).mean(0)

    columns = [
        centre(tmaze_render.picture(task, state(x)), tmaze_render.BLUE)[1] for x in range(11)
    ]
    np.testing.assert_allclose(np.diff(columns), tmaze_render.CELL, atol=0.5)
    left, right = (tmaze_render.picture(task, state(3, cue)) for cue in (LEFT, RIGHT))
    green, red = tmaze_render.PALE_GREEN, tmaze_render.PALE_RED
    assert centre(left, green)[0] < centre(left, red)[0]
    assert centre(right, green)[0] > centre(right, red)[0]


def test_the_sign_is_lit_only_while_the_agent_sees_it():
    task, amber = TMaze(length=10), tmaze_render.AMBER
    assert count(tmaze_render.picture(task, state(0)), amber) > 300
    assert count(tmaze_render.picture(task, state(0, time=1)), amber) == 0
    assert count(tmaze_render.picture(task, state(1, time=1)), amber) == 0
    assert count(tmaze_render.picture(TMaze.bakker(10), state(0, time=1)), amber) > 300


def test_gymnasium_renders_both_modes():
    env = gymnasium.make("snaprl/TMaze-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (264, 760, 3)
    env = gymnasium.make("snaprl/TMaze-v0", render_mode="ansi", length=4)
    env.reset(seed=0)
    env.step(0)
    assert "SA..+" in env.render()
    assert gymnasium.make("snaprl/TMaze-v0").unwrapped.render() is None


def test_vectors_render_every_copy():
    envs = gymnasium.make_vec("snaprl/TMaze-v0", num_envs=3, render_mode="ansi", length=4)
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 0]))
    rows = [frame.splitlines()[1] for frame in envs.render()]
    assert rows == ["SA..+", "A...+", "SA..+"]
    assert gymnasium.make_vec("snaprl/TMaze-v0", num_envs=3).render() is None


def test_a_glyph():
    picture = "\n".join(
        "".join(".#"[bit] for bit in row) for row in pixel_font.text("l+?").astype(int)
    )
    assert picture == (
        "#.................\n"
        "#.......#.........\n"
        "#.......#.........\n"
        "#.....#####.......\n"
        "#.......#.........\n"
        "#.......#.........\n"
        "#####............."
    )
