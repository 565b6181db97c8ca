"""Checkpoints: a run's whole state, written whole or not at all, and read back exactly."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
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
AGAIN_S = 0.2  # a folder that is listed while it changes may lack what is new
FORMAT = 4  # of what a checkpoint holds; the first had an array for each leaf
READABLE = (3, FORMAT)  # of 3 are runs without actors alike
Packed = dict[str, np.ndarray]  # by the name of their type, all leaves of that type end to end


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
    never mistaken for a whole one. All leaves of one type lie end to end in one array, in the order
    of `leaves` in the item `meta`, which has their paths and shapes: tensorstore 0.1 keeps some
    bytes for ever of every array that it writes.
    Random keys of jax's own type are saved as the numbers that they are made of.
    """

    def __init__(self, folder: Path, keep: int = 3):
        """Opens the folder; it is made at the first checkpoint.

        Args:
          folder: where checkpoints lie.
          keep: how many of the last ones are kept.
        """
        import orbax.checkpoint as ocp

        # orbax tells of every file it writes, and of what it fails at beside raising it
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp, self._folder, self._keep = ocp, folder.absolute(), keep
        self._manager: Any = None
        self._writing: Future | None = None

    def save(self, step: int, state: PyTree) -> None:
        """Writes a checkpoint in the background; it counts once it is whole.

        The state is copied before this returns. The checkpoint before has been written by then.

        Raises:
          UserError: the one before could not be written, see `wait`.
        """
        packed, leaves = _pack(state), _leaves(state)
        self.wait()
        self._writing = _WRITER.submit(self._write, step, packed, leaves)

    def check(self) -> None:
        """Raises what `wait` would, if that is known by now; waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: it cannot be written, as on a full disk; what was there before stays.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, packed: Packed, leaves: dict[str, str]) -> None:
        meta = {"format": FORMAT, "leaves": leaves, "crc32": _checksum(packed)}
        args = self._ocp.args
        try:
            self._open().save(
                step,
                args=args.Composite(state=args.StandardSave(packed), meta=args.JsonSave(meta)),
                force=True,
            )
            self._open().wait_until_finished()
            folder = self._folder / str(step)
            new = folder / f"{DIGESTS}.new"
            new.write_text(json.dumps(_digests(folder)), encoding="utf-8")
            new.replace(folder / DIGESTS)
        except Exception as error:  # tensorstore says what a disk said in types of its own
            with contextlib.suppress(Exception):  # orbax would say it again whenever it is asked
                self._let_go()
            for half in self._folder.glob(f"{step}.orbax-checkpoint-tmp*"):  # room on a full disk
                shutil.rmtree(half, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self._folder}: {_why(error)}"
            ) from error

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def restore(self, like: PyTree) -> Restored:
        """Reads the last whole checkpoint; a run may go on writing others and dropping old ones.

        Args:
          like: a tree of the same leaves, or of their shapes and types.

        Raises:
          UserError: there is none, none is whole, or it belongs to another architecture.
        """
        self.wait()
        steps, damaged = self.steps(), []
        last = max(steps, default=0)
        while steps:
            step = steps.pop()
            try:
                _check_digests(self._folder / str(step))
                meta = self._read(step, "meta", self._ocp.args.JsonRestore())
                _compare(meta, like, self._folder / str(step))
                target = _packed_like(like)
                packed = self._read(step, "state", self._ocp.args.StandardRestore(target))
                if _checksum(packed) != meta["crc32"]:
                    raise ValueError("checksum")
            except UserError:
                raise
            except Exception:  # a damaged file fails in as many ways as it has bytes
                damaged.append(step)
                time.sleep(AGAIN_S)
                there = self.steps()
                if there and there[-1] > last:  # a run goes on; this one may be one it dropped
                    steps, last = there, there[-1]
                damaged = [step for step in damaged if step in there and step not in steps]
                continue
            return Restored(step, _unpack(packed, like), tuple(damaged))
        if damaged:
            raise UserError(f"no checkpoint in {self._folder} is whole: train anew")
        raise UserError(f"there is no checkpoint in {self._folder}: nothing was trained there yet")

    def discard(self, steps: tuple[int, ...]) -> None:
        """Removes checkpoints, so that a run that goes on from an earlier one can write its own."""
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
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _open(self) -> Any:
        if self._manager is None:
            options = self._ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
            self._manager = self._ocp.CheckpointManager(self._folder, options=options)
        return self._manager

    def _read(self, step: int, item: str, args: Any) -> Any:
        composite = self._ocp.args.Composite(**{item: args})
        return self._open().restore(step, args=composite)[item]


def _why(error: Exception) -> str:
    """What the system said; tensorstore hands that on within a long sentence of its own."""
    text = " ".join(str(error).split())
    if found := re.search(r"([^:]+) \[os_error_code", text):
        return found[1].strip()
    if isinstance(error, OSError):
        return error.strerror or text
    return f"{type(error).__name__}: {text}"


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


def _pack(tree: PyTree) -> Packed:
    parts: dict[str, list[np.ndarray]] = {}
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        if array.size:  # orbax writes no array without numbers
            parts.setdefault(array.dtype.name, []).append(array.ravel())
    # copies: the program that goes on may write into the same memory
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _packed_like(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of what `_pack` makes of a tree like this."""
    sizes: dict[np.dtype, int] = {}
    for like in map(_like_numpy, jax.tree.leaves(tree)):
        if like.size:
            sizes[like.dtype] = sizes.get(like.dtype, 0) + like.size
    return {dtype.name: jax.ShapeDtypeStruct((n,), dtype) for dtype, n in sizes.items()}


def _unpack(packed: Packed, like: PyTree) -> PyTree:
    rest = {name: np.asarray(array) for name, array in packed.items()}

    def take(leaf: Any) -> Any:
        plain = _like_numpy(leaf)
        name = plain.dtype.name
        flat, rest[name] = np.split(rest.get(name, np.zeros(0, plain.dtype)), [plain.size])
        array = flat.reshape(plain.shape)
        return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else array

    return jax.tree.map(take, like)


def _like_numpy(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _leaves(tree: PyTree) -> dict[str, str]:
    """Path of every leaf and what it is."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        like = _like_numpy(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = f"{like.dtype}{list(like.shape)}"
    return found


def _checksum(packed: Packed) -> int:
    total = 0
    for name in sorted(packed):
        total = zlib.crc32(np.asarray(packed[name]).tobytes(), total)
    return total


def _compare(meta: dict[str, Any], like: PyTree, place: os.PathLike) -> None:
    """Raises UserError, with the first difference, unless `meta` is of leaves like these."""
    if meta.get("format") not in READABLE:
        raise UserError(f"{place} was written by another version of snaprl: go on with that one")
    found, wanted = meta["leaves"], _leaves(like)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{place} belongs to another architecture: {name} is {found.get(name, 'absent')} "
                f"there and {wanted.get(name, 'absent')} here; use the config it was trained with"
            )
