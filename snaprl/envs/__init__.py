"""Memory tasks: as pure functions for jax, and as gymnasium environments.

Importing this registers our environments with gymnasium as `snaprl/NAME-v0`.
"""

from snaprl.envs.auto_reset import AutoResetEnv, AutoState, AutoStep, auto_reset
from snaprl.envs.gym import EnvSnapshot, PureGymEnv
from snaprl.envs.registry import Listing, listing, make_pure, make_vec, register_all
from snaprl.envs.tmaze import TMaze, TMazeState
from snaprl.envs.types import PureEnv, Step
from snaprl.envs.vector import PureVectorEnv, VectorSnapshot

__all__ = [
    "AutoResetEnv",
    "AutoState",
    "AutoStep",
    "EnvSnapshot",
    "Listing",
    "PureEnv",
    "PureGymEnv",
    "PureVectorEnv",
    "Step",
    "TMaze",
    "TMazeState",
    "VectorSnapshot",
    "auto_reset",
    "listing",
    "make_pure",
    "make_vec",
    "register_all",
]

register_all()
