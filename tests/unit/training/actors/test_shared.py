"""Memory that processes share."""

import multiprocessing
import os
from multiprocessing import reduction

import numpy as np
import pytest

from snaprl.training.actors import shared
from snaprl.training.actors.processes import CONTEXT
from snaprl.training.actors.shared import Memory, Newest, attach
from snaprl.training.errors import UserError

NBYTES = 4096


def write(pipe, versions: int) -> None:
    """Writes buffers, each of one number, as fast as it can."""
    newest = Newest(attach(reduction.recv_handle(pipe)), NBYTES)
    for version in range(1, versions + 1):
        newest.write(np.full(NBYTES, version % 251, np.uint8), 3 * version)


def test_a_reader_never_sees_half_a_buffer():
    memory = Memory(Newest.size(NBYTES))
    newest = Newest(memory.buffer, NBYTES)
    newest.write(np.full(NBYTES, 1, np.uint8), 3)
    newest._version[0] = 0
    ours, theirs = multiprocessing.Pipe()
    versions = 5_000
    process = CONTEXT.Process(target=write, args=(theirs, versions))
    process.start()
    reduction.send_handle(ours, memory.descriptor, process.pid)
    seen = set()
    while newest.version == 0:
        pass
    while max(seen, default=0) < versions:
        version, label, data = newest.read()
        assert (data == version % 251).all()
        assert label == 3 * version
        seen.add(version)
    process.join()
    assert len(seen) > 1  # else the two never met
    memory.close()


def test_memory_has_no_name_and_is_given_back():
    before = set(os.listdir(shared.RAM)), len(os.listdir("/proc/self/fd"))
    memory = Memory(NBYTES)
    memory.buffer[:3] = b"abc"
    other = attach(os.dup(memory.descriptor))
    assert other[:3] == b"abc"
    memory.close()
    other[0:1] = b"x"
    assert memory.buffer[:1] == b"x"
    del memory, other
    assert (set(os.listdir(shared.RAM)), len(os.listdir("/proc/self/fd"))) == before


def test_too_much_is_one_sentence():
    with pytest.raises(UserError, match=r"no room for \d+ MiB"):
        Memory(2**60)
