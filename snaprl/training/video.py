"""Films of what a trained agent does."""

import warnings
from pathlib import Path

import gymnasium
import numpy as np

from snaprl.training.build import make_envs
from snaprl.training.errors import UserError
from snaprl.training.host_envs import HostEnvs
from snaprl.training.player import Player
from snaprl.training.run import read
from snaprl.training.schema import Config

KINDS = (".gif", ".mp4")
MODE = "rgb_array"  # in which an environment draws itself
FPS = 15  # where an environment does not say
MOST_FRAMES = 5000  # they are all in memory at once


def check(path: Path) -> None:
    """Refuses what no film can be written to, before anything is computed.

    Raises:
      UserError: the ending is none of `KINDS`, or what writes it is not installed.
    """
    if path.suffix not in KINDS:
        raise UserError(f"--video {path}: the name must end in {' or '.join(KINDS)}")
    if not path.parent.is_dir():
        raise UserError(f"--video {path}: there is no folder {path.parent}")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError(
                f"--video {path} needs imageio: pip install 'snaprl[video]', or write a .gif"
            ) from error


def film(folder: Path, path: Path, *, episodes: int, seed: int = 0, best: bool = False) -> int:
    """Films episodes of a run's last checkpoint, actions drawn as in training.

    Args:
      folder: the run's.
      path: of the film, a gif or an mp4.
      episodes: how many, one after the other.
      seed: of what is drawn.
      best: take the checkpoint that was best by the evaluations during training.

    Returns:
      How many frames the film has.

    Raises:
      UserError: the run is no agent's, or its environment cannot be drawn.
    """
    check(path)
    saved = read(folder, best=best)
    config = saved.config
    if not isinstance(config, Config):
        raise UserError(f"{folder} holds a supervised run: only agents can be filmed")
    try:
        plain = make_envs(config, 1, vectorization_mode="sync")
        plain.close()
        if MODE not in plain.metadata.get("render_modes", ()):
            raise UserError(f"{config.env.id} cannot be drawn: it has no render mode '{MODE}'")
        vector = make_envs(config, 1, vectorization_mode="sync", render_mode=MODE)
    except (gymnasium.error.Error, ValueError, TypeError) as error:
        raise UserError(f"{config.env.id} cannot be drawn: {error}") from error
    fps = int(vector.metadata.get("render_fps") or FPS)
    envs = HostEnvs(vector)
    most = min(config.evaluation.max_steps * episodes, MOST_FRAMES)
    space = saved.built.observation_space
    player = Player(saved.built.agent, saved.state.learner.variables, space)
    frames = _frames(player, envs, episodes, most, seed)
    envs.close()
    try:
        _write(path, frames, fps)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return len(frames)


def _frames(
    player: Player, envs: HostEnvs, episodes: int, most: int, seed: int
) -> list[np.ndarray]:
    """Pictures uint8 `[height, width, 3]` of an environment in which the player acts."""
    player.reset(1, seed=seed)
    observation, reward, first = envs.reset(seed), np.zeros(1), np.ones(1, bool)
    frames = [_picture(envs)]
    while episodes and len(frames) < most:
        out = envs.step(player.act(observation, reward, first))
        observation, reward, first = out.observation, out.reward, out.first
        frames.append(_picture(envs))
        episodes -= int(out.ended[0])
    return frames


def _picture(envs: HostEnvs) -> np.ndarray:
    picture = envs.render()[0]
    # video formats want even sides
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write(path: Path, frames: list[np.ndarray], fps: int) -> None:
    if path.suffix == ".gif":
        from PIL import Image

        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
        return
    import imageio.v2 as imageio  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        # another program is started, which takes nothing of ours along
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        imageio.mimwrite(path, frames, fps=fps, macro_block_size=2)
