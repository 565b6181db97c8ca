"""Checkpoints: a run's whole state, written whole or not at all, and read back exactly."""

import hashlib
import json
import logging
import os
import sys
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.training.errors import UserError

PyTree = Any
# one for all folders: two threads that save at once can make orbax wait for ever
_WRITER = ThreadPoolExecutor(1, "checkpoints")
DIGESTS = "digests.json"  # of a checkpoint's files, written when they are all there


class Restored(NamedTuple):
    """A checkpoint that was read back."""

    step: int
    state: PyTree
    damaged: tuple[int, ...]  # later checkpoints that could not be read


def tell_of_damage(restored: Restored) -> None:
    """Says on stderr which checkpoint is used in place of a damaged one."""
    steps = ", ".join(map(str, restored.damaged))
    print(
        f"snaprl: the checkpoint of step {steps} is damaged: using that of step {restored.step}",
        file=sys.stderr,
    )


class Checkpoints:
    """The last few checkpoints of a run, in a folder, by orbax.

    A checkpoint carries digests of its files and a checksum of its arrays, so a damaged one is
    never mistaken for a whole one. Random keys of jax's own type are saved as the numbers that they
    are made of.
    """

    def __init__(self, folder: Path, keep: int = 3):
        """Opens the folder; it is made at the first checkpoint.

        Args:
          folder: where checkpoints lie.
          keep: how many of the last ones are kept.
        """
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every file it writes
        self._ocp, self._folder, self._keep = ocp, folder.absolute(), keep
        self._manager: Any = None
        self._writing: Future | None = None

    def save(self, step: int, state: PyTree) -> None:
        """Writes a checkpoint in the background; it counts once it is whole.

        The state is copied before this returns. The checkpoint before has been written by then.

        Raises:
          UserError: the one before could not be written, see `wait`.
        """
        arrays = jax.tree.map(_to_numpy, state)
        self.wait()
        self._writing = _WRITER.submit(self._write, step, arrays)

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: it cannot be written, as on a full disk; what was there before stays.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, arrays: PyTree) -> None:
        meta = {"leaves": _leaves(arrays), "crc32": _checksum(arrays)}
        args = self._ocp.args
        try:
            self._open().save(
                step,
                args=args.Composite(state=args.StandardSave(arrays), meta=args.JsonSave(meta)),
                force=True,
            )
            self._open().wait_until_finished()
            folder = self._folder / str(step)
            new = folder / f"{DIGESTS}.new"
            new.write_text(json.dumps(_digests(folder)), encoding="utf-8")
            new.replace(folder / DIGESTS)
        except OSError as error:
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self._folder}: "
                f"{error.strerror or error}"
            ) from error

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def restore(self, like: PyTree) -> Restored:
        """Reads the last whole checkpoint.

        Args:
          like: a tree of the same leaves, or of their shapes and types.

        Raises:
          UserError: there is none, none is whole, or it belongs to another architecture.
        """
        self.wait()
        damaged = []
        for step in reversed(self.steps()):
            try:
                _check_digests(self._folder / str(step))
                meta = self._read(step, "meta", self._ocp.args.JsonRestore())
                _compare(meta["leaves"], _leaves(like), self._folder / str(step))
                target = jax.tree.map(_like_numpy, like)
                arrays = self._read(step, "state", self._ocp.args.StandardRestore(target))
                if _checksum(arrays) != meta["crc32"]:
                    raise ValueError("checksum")
            except UserError:
                raise
            except Exception:  # a damaged file fails in as many ways as it has bytes
                damaged.append(step)
                continue
            return Restored(step, jax.tree.map(_from_numpy, arrays, like), tuple(damaged))
        if damaged:
            raise UserError(f"no checkpoint in {self._folder} is whole: train anew")
        raise UserError(f"there is no checkpoint in {self._folder}: nothing was trained there yet")

    def discard(self, steps: tuple[int, ...]) -> None:
        """Removes checkpoints, so that a run that goes on from an earlier one can write its own."""
        import shutil

        self.wait()
        self._let_go()
        for step in steps:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def close(self) -> None:
        """Waits for what is being written; raises UserError where that fails."""
        try:
            self.wait()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self) -> Any:
        if self._manager is None:
            options = self._ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
            self._manager = self._ocp.CheckpointManager(self._folder, options=options)
        return self._manager

    def _read(self, step: int, item: str, args: Any) -> Any:
        composite = self._ocp.args.Composite(**{item: args})
        return self._open().restore(step, args=composite)[item]


def _digests(folder: Path) -> dict[str, str]:
    """Digests of a checkpoint's files, by their paths in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(DIGESTS):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


def _check_digests(folder: Path) -> None:
    """Raises ValueError unless a checkpoint's files are as they were written.

    Before orbax reads them: it reads many at once, and where one fails, the others go on shouting
    from the background. A run that was killed before it wrote the digests has the checksum still.
    """
    file = folder / DIGESTS
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != _digests(folder):
        raise ValueError("digest")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    # a copy: the program that goes on may write into the same memory
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like_numpy(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _from_numpy(array: Any, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array))
    return np.asarray(array)


def _leaves(tree: PyTree) -> dict[str, str]:
    """Path of every leaf and what it is."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        like = _like_numpy(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = f"{like.dtype}{list(like.shape)}"
    return found


def _checksum(arrays: PyTree) -> int:
    total = 0
    for leaf in jax.tree.leaves(arrays):
        total = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), total)
    return total


def _compare(found: dict[str, str], wanted: dict[str, str], place: os.PathLike) -> None:
    """Raises UserError, with the first difference, unless both describe the same leaves."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{place} belongs to another architecture: {name} is {found.get(name, 'absent')} "
                f"there and {wanted.get(name, 'absent')} here; use the config it was trained with"
            )
