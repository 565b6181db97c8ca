"""What the tests of the command share: a small task, and what the command says."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

STEPS, CHECKPOINTS = 512, [256, 512]
TASK = """
[env]
kwargs = { length = 3 }
[agent]
features = 4
[training]
streams = 4
unroll = 4
steps = 512
report_every = 128
checkpoint_every = 256
[evaluation]
episodes = 8
max_steps = 20
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Pathological(gymnasium.Env):
    """What goes wrong from some step on, or a space that nothing here can read."""

    def __init__(self, *, broken_space: bool = False, good_steps: int = 0, raises: bool = False):
        self._raises = raises
        self.observation_space = spaces.Text(5) if broken_space else spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Discrete(2)
        self._left = good_steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._left -= 1
        if self._raises and self._left < 0:
            raise KeyError("the door is gone")
        reward = 0.0 if self._left >= 0 else float("nan")
        return np.zeros(2, np.float32), reward, False, False, {}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(said: Said, sentence: str) -> None:
    """One line on stderr, nothing on stdout, code 2; `sentence` is a regular expression."""
    assert said.code == 2, said
    assert not said.out
    assert re.fullmatch(f"snaprl: {sentence}\n", said.err), said.err


def spoil_last_checkpoint(folder: Path) -> int:
    """Truncates the biggest file of the last checkpoint; returns that one's step."""
    step = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    files = [p for p in (folder / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)
    return step
