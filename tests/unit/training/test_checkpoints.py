"""Checkpoints: what was saved comes back to the bit, and what was damaged never does."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from snaprl.training.checkpoints import Checkpoints
from snaprl.training.errors import UserError


class State(NamedTuple):
    """Every kind of leaf that a run has."""

    params: dict
    key: jax.Array
    keys: jax.Array
    count: jax.Array
    flags: np.ndarray
    raw: np.ndarray
    empty: np.ndarray
    nothing: tuple


def state(seed: int = 0, width: int = 40) -> State:
    key = jax.random.key(seed)
    return State(
        params={
            "kernel": jax.random.normal(key, (width, width)),
            "half": jax.random.normal(key, (3,)).astype(jnp.bfloat16),
            "odd": jnp.array([jnp.nan, -0.0, jnp.inf]),
        },
        key=key,
        keys=jax.random.split(key, 3),
        count=jnp.int32(7 + seed),
        flags=np.array([True, False, True]),
        raw=np.arange(4, dtype=np.uint32),
        empty=np.zeros((0, 3), np.float16),
        nothing=(),
    )


def bits(tree) -> list[tuple]:
    """Leaves as their types, shapes and bytes: NaN equals itself, and 0 is not -0."""

    def plain(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return leaf

    arrays = [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(tree)]
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Holds the checkpoints of steps 10, 20 and 30."""
    checkpoints = Checkpoints(tmp_path / "c", keep=5)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return tmp_path / "c"


def restore(folder: Path, like=None):
    checkpoints = Checkpoints(folder, keep=5)
    try:
        return checkpoints.restore(state() if like is None else like)
    finally:
        checkpoints.close()


def test_what_was_saved_comes_back_to_the_bit(folder):
    step, found, damaged = restore(folder)
    assert (step, damaged) == (30, ())
    assert jax.tree.structure(found) == jax.tree.structure(state())
    assert bits(found) == bits(state(30))
    assert found.key.dtype == state().key.dtype
    # the key goes on as the one that was saved
    ours, theirs = (jax.random.normal(s.key, (3,)) for s in (found, state(30)))
    np.testing.assert_array_equal(ours, theirs)


def test_shapes_and_types_are_enough_to_ask_for_it(folder):
    assert bits(restore(folder, jax.eval_shape(state)).state) == bits(state(30))


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path):
    moving = np.ones(1000)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"x": moving})
    moving[:] = 2
    assert checkpoints.restore({"x": moving}).state["x"].max() == 1
    checkpoints.close()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_few_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "c", keep=keep)
    assert checkpoints.steps() == []
    for step in (5, 10, 100, 20_000):
        checkpoints.save(step, {"x": jnp.ones(2) * step})
    checkpoints.close()
    assert checkpoints.steps() == [5, 10, 100, 20_000][-keep:]


def biggest(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, place: int, count: int = 8) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        found = file.read(count)
        file.seek(place)
        file.write(bytes(byte ^ 0xFF for byte in found))


def files_of(folder: Path, step: int) -> list[Path]:
    found = (path for path in sorted((folder / str(step)).rglob("*")) if path.stat().st_size)
    return [path for path in found if path.is_file()]


DAMAGE = {
    "truncated": lambda c: os.truncate(biggest(c), biggest(c).stat().st_size // 2),
    "empty": lambda c: os.truncate(biggest(c), 0),
    "flipped at the start": lambda c: flip(biggest(c), 0),
    "flipped in the middle": lambda c: flip(biggest(c), biggest(c).stat().st_size // 2),
    "file lost": lambda c: biggest(c).unlink(),
    "arrays lost": lambda c: shutil.rmtree(c / "state"),
    "checksum lost": lambda c: shutil.rmtree(c / "meta"),
    "nothing left": lambda c: (shutil.rmtree(c), c.mkdir()),
    "meta truncated": lambda c: os.truncate(c / "meta" / "metadata", 9),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said(folder, damage):
    damage(folder / "30")
    step, found, damaged = restore(folder)
    assert (step, damaged) == (20, (30,))
    assert bits(found) == bits(state(20))


def test_no_flipped_file_is_taken_for_whole(folder):
    """Whichever file is hit, those that nobody reads included."""
    for path in files_of(folder, 30):
        saved = path.read_bytes()
        flip(path, path.stat().st_size // 2, 4)
        step, found, damaged = restore(folder)
        assert (step, damaged) == (20, (30,)), path
        assert bits(found) == bits(state(20))
        path.write_bytes(saved)


def test_without_digests_the_checksum_tells(folder):
    """As in a run that was killed just before it wrote them."""
    (folder / "30" / "digests.json").unlink()
    assert restore(folder)[::2] == (30, ())
    meta = folder / "30" / "meta" / "metadata"
    text = meta.read_text()
    meta.write_text(re.sub(r'("crc32": *)(\d)', lambda m: m[1] + str(9 - int(m[2])), text))
    assert meta.read_text() != text
    assert restore(folder)[::2] == (20, (30,))


def test_all_that_are_damaged_are_said(folder):
    for step in (20, 30):
        DAMAGE["truncated"](folder / str(step))
    assert restore(folder)[::2] == (10, (30, 20))
    DAMAGE["truncated"](folder / "10")
    with pytest.raises(UserError, match=r"^no checkpoint in .* is whole: train anew$"):
        restore(folder)


def test_one_that_was_being_written_does_not_count(folder):
    half = folder / "40.orbax-checkpoint-tmp"
    shutil.copytree(folder / "30", half)
    DAMAGE["truncated"](half)
    assert restore(folder)[::2] == (30, ())


def test_a_discarded_step_can_be_saved_anew(folder):
    DAMAGE["truncated"](folder / "30")
    checkpoints = Checkpoints(folder, keep=5)
    damaged = checkpoints.restore(state()).damaged
    checkpoints.discard(damaged)
    assert checkpoints.steps() == [10, 20]
    checkpoints.save(30, state(31))
    checkpoints.close()
    assert bits(restore(folder).state) == bits(state(31))


OTHER = {
    "shape": (state(width=41), r"params/kernel is float32\[40, 40\] there and float32\[41, 41\]"),
    "type": (state()._replace(count=jnp.float32(0)), r"count is int32\[\] there and float32\[\]"),
    "more": (state()._replace(nothing=(jnp.ones(1),)), r"nothing/0 is absent there and float32"),
    "less": (state()._replace(raw=()), r"raw is uint32\[4\] there and absent here"),
}


@pytest.mark.parametrize(("like", "difference"), OTHER.values(), ids=OTHER)
def test_another_architecture_is_said(folder, like, difference):
    with pytest.raises(UserError, match=f"30 belongs to another architecture: .*{difference}"):
        restore(folder, like)


def test_an_array_for_each_type_and_the_places_of_its_leaves(folder):
    """What someone needs who reads a checkpoint without snaprl."""
    meta = json.loads((folder / "30" / "meta" / "metadata").read_text())
    arrays = ocp.StandardCheckpointer().restore(folder / "30" / "state")
    assert sorted(arrays) == ["bfloat16", "bool", "float32", "int32", "uint32"]
    names = ["params/half", "params/kernel", "params/odd", "key", "keys", "count"]
    assert list(meta["leaves"]) == [*names, "flags", "raw", "empty"]
    kernel = np.asarray(arrays["float32"][:1600]).reshape(40, 40)
    np.testing.assert_array_equal(kernel, state(30).params["kernel"])


def test_one_of_another_version_is_said(folder):
    (folder / "30" / "digests.json").unlink()
    meta = folder / "30" / "meta" / "metadata"
    text = meta.read_text()
    meta.write_text(re.sub(r'"format": *\d+', '"format": 1', text))
    assert meta.read_text() != text
    with pytest.raises(UserError, match=r"30 was written by another version of snaprl"):
        restore(folder)


def test_none_is_said_and_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match=r"^there is no checkpoint in .*c: nothing was trained"):
        restore(tmp_path / "c")
    assert not (tmp_path / "c").exists()


# a limit on the size of files stands for a full disk: both fail in the middle of a file
FULL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from snaprl.training.checkpoints import Checkpoints
from snaprl.training.errors import UserError

checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"x": np.arange(3.0)})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
checkpoints.save(2, {"x": np.random.default_rng(0).random(100_000)})
try:
    checkpoints.wait()
except UserError as error:
    print(error)
checkpoints.close()
"""


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    folder = tmp_path / "c"
    command = [sys.executable, "-c", FULL, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    sentence = f"the checkpoint of step 2 cannot be written to {folder}: File too large"
    assert done.stdout.strip() == sentence
    assert done.stderr == ""  # no word of orbax's
    assert [p.name for p in folder.iterdir()] == ["1"]
    restored = Checkpoints(folder).restore({"x": np.zeros(3)})
    np.testing.assert_array_equal(restored.state["x"], np.arange(3.0))
    assert restored.step == 1


def test_a_failure_is_known_before_the_next_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "c")
    checkpoints.check()  # nothing is being written
    checkpoints.save(1, {"x": jnp.ones(1)})
    with pytest.raises(UserError, match="^the checkpoint of step 1 cannot be written"):
        for _ in range(1000):
            checkpoints.check()
            time.sleep(0.01)


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "c")
    checkpoints.save(1, {"x": jnp.ones(1)})
    with pytest.raises(UserError, match=r"^the checkpoint of step 1 cannot be written to .*file/c"):
        checkpoints.wait()
    checkpoints.close()


WRITER = """
import sys, pathlib
from unit.training.test_checkpoints import Checkpoints, state
checkpoints, step = Checkpoints(pathlib.Path(sys.argv[1]), keep=1), 0
while True:
    step += 1
    checkpoints.save(step, state(step, width=300))
"""


# what orbax leaves behind of a read that failed half-way
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_is_read_while_others_are_written_and_dropped(tmp_path):
    """Whoever looks at a run that goes on finds one, and none that is called damaged."""
    tests = str(Path(__file__).parents[2])
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "c")], env=os.environ | {"PYTHONPATH": path}
    ) as writer:
        try:
            while not Checkpoints(tmp_path / "c").steps() and writer.poll() is None:
                time.sleep(0.05)
            found = []
            for _ in range(12):
                reader = Checkpoints(tmp_path / "c", keep=1)
                restored = reader.restore(state(width=300))
                reader.close()
                found.append(restored.step)
                assert bits(restored.state) == bits(state(restored.step, width=300))
                assert restored.damaged == ()
            assert writer.poll() is None
        finally:
            writer.kill()
    assert found[0] < found[-1]


def test_one_that_is_dropped_while_it_is_read_leads_to_the_newer_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(1, state(1))
    checkpoints.wait()
    reader = Checkpoints(tmp_path / "c", keep=1)
    read = reader._read

    def overtaken(step, item, args):
        if step == 1:
            checkpoints.save(2, state(2))
            checkpoints.wait()
        return read(step, item, args)

    monkeypatch.setattr(reader, "_read", overtaken)
    restored = reader.restore(state())
    assert (restored.step, restored.damaged) == (2, ())
    reader.close()
    checkpoints.close()
