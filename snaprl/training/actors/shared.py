"""Memory that processes of one machine share. It has no name, so that nothing is left behind."""

import mmap
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from snaprl.training.errors import UserError

RAM = "/dev/shm"


class Memory:
    """A block of zeros that other processes can open by its descriptor.

    Attributes:
      buffer: the block. Arrays made of it keep it mapped.
      descriptor: to be sent to another process.
    """

    def __init__(self, nbytes: int):
        """Reserves the block.

        Raises:
          UserError: there is no room for it.
        """
        self._file = _reserve(nbytes)
        self.descriptor = self._file.fileno()
        self.buffer = mmap.mmap(self.descriptor, nbytes)

    def close(self) -> None:
        """Lets no other process open it any more; who has it open keeps it."""
        self._file.close()


def attach(descriptor: int) -> mmap.mmap:
    """The block that another process made; `descriptor` is closed."""
    try:
        return mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _reserve(nbytes: int) -> Any:
    # reserved, not only named: a page that cannot be had later would kill whoever touches it
    for folder in [RAM] * Path(RAM).is_dir() + [None]:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it is handed on)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.write(bytes(nbytes))
                file.flush()
        except OSError:
            file.close()
            continue
        return file
    raise UserError(
        f"there is no room for {nbytes / 2**20:.0f} MiB that actors share, neither in {RAM} nor in "
        f"{tempfile.gettempdir()}: fewer training.streams or a smaller actors.ahead need less"
    )


class Newest:
    """The newest of a row of buffers, written by one process and read by many, without locks.

    There is room for two. A reader that was overtaken while it copied sees that by the version or
    by the checksum, and copies again.
    """

    HEADER = 64  # bytes: the version, and checksum and label of both

    def __init__(self, buffer: Any, nbytes: int):
        """Looks at shared memory of `size(nbytes)` bytes."""
        self._version = np.frombuffer(buffer, np.int64, 1)
        self._checksums = np.frombuffer(buffer, np.uint32, 2, 8)
        self._labels = np.frombuffer(buffer, np.int64, 2, 16)
        self._rooms = np.frombuffer(buffer, np.uint8, 2 * nbytes, self.HEADER).reshape(2, nbytes)

    @classmethod
    def size(cls, nbytes: int) -> int:
        """How much shared memory it needs, in bytes."""
        return cls.HEADER + 2 * nbytes

    @property
    def version(self) -> int:
        """How many buffers have been written."""
        return int(self._version[0])

    def write(self, data: np.ndarray, label: int) -> None:
        """Writes the next buffer, uint8 `[nbytes]`, and what its writer calls it."""
        version = self.version + 1
        self._labels[version % 2] = label
        self._rooms[version % 2] = data
        self._checksums[version % 2] = _checksum(data)
        self._version[0] = version

    def read(self) -> tuple[int, int, np.ndarray]:
        """The newest version, from 1 on, its label, and a copy of its buffer."""
        while True:
            version = self.version
            data, label = self._rooms[version % 2].copy(), int(self._labels[version % 2])
            whole = _checksum(data) == self._checksums[version % 2]
            if whole and version == self.version and version > 0:
                return version, label, data


def _checksum(data: np.ndarray) -> int:
    return zlib.crc32(data.data)
