"""How much memory an influence will take, said before it is made."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from snaprl.cores import reach
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.segment import influence_dtype
from snaprl.cores.types import GradientMethod, Params, PyTree
from snaprl.cores.unitwise import UnitwiseCell

GIB = 2**30
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def check(
    influence: PyTree,
    streams: int,
    *,
    method: GradientMethod,
    cell: nn.RNNCellBase,
    params: Params,
    mask: Params,
) -> None:
    """Raises ValueError where the influence does not fit into memory, with what would.

    That of all streams is compared with the whole memory of one device, the first of this process:
    nothing is known here of what else is there, nor of other devices that a carry may be laid over.
    A CPU's memory is the machine's, or what its control group may take where that is less.

    Args:
      influence: its shapes.
      streams: B.
      method: whose it is.
      cell: of that.
      params: the cell's, or their shapes.
      mask: 0/1 arrays shaped like some of them.
    """
    size = _bytes(influence)
    _check(size, streams, lambda room: _ways(method, cell, params, mask, size, streams, room))


def check_stack(influences: Sequence[PyTree], streams: int) -> None:
    """Raises ValueError where those of all layers of a stack do not fit together."""
    size = sum(_bytes(influence) for influence in influences)
    _check(size, streams, lambda room: "", f"the influences of {len(influences)} layers take")


def check_pairs(cell: UnitwiseCell, params: Params, mask: Params, order: int | None) -> None:
    """Raises ValueError where one stream's influence is too large, before its pattern is made."""
    reads = reach.reads(cell, params, mask)
    lists = reach.heard(reach.reach(reads, order), reads)
    pattern = 2 * 2 * 4 * lists  # pairs and units, heard and told, of four bytes
    size = pattern + _of_a_stream(cell, params, mask, order)
    _check(size, 1, lambda room: _that_fits(cell, params, mask, order, 1, room))


def check_jacobians(cell: nn.RNNCellBase, state: int, parameters: int, dtype: Any) -> None:
    """Raises ValueError where one step's Jacobians on the general path are too large.

    Three arrays `[state, parameters]` are alive at once, whatever is kept of them, and one stream's
    at a time: that by the parameters, the influence spread out, and their sum.
    """
    size, room = 3 * state * parameters * np.dtype(dtype).itemsize, _memory()
    if size > room:
        raise ValueError(
            f"{type(cell).__name__} is not known to be unit-wise, and its Jacobians of one step "
            f"take {size / GIB:.1f} GiB, of {room / GIB:.1f} GiB; BPTT() would fit, or a smaller "
            "cell, or one whose units are known"
        )


def _check(
    size: int, streams: int, way: Callable[[int], str], what: str = "the influence takes"
) -> None:
    """Raises where `size` is too much; `way(room)` says what would take less, or nothing."""
    room = _memory()
    if size <= room:
        return
    fits = int(room * streams // size)
    ways = [f"{_streams(fits)} would fit" if fits else "not even one stream would fit", way(room)]
    raise ValueError(
        f"{what} {size / GIB:.1f} GiB for {_streams(streams)}, of "
        f"{room / GIB:.1f} GiB; {', and '.join(filter(None, ways))}"
    )


def _ways(
    method: Any,
    cell: nn.RNNCellBase,
    params: Params,
    mask: Params,
    size: int,
    streams: int,
    room: int,
) -> str:
    """What else of the method's own kind would fit; '' where nothing is known to."""
    kind = getattr(method, "tail", None) or method
    if lower := int(getattr(kind, "rank", 0) * room // size):  # memory grows with the rank
        at_rank = dataclasses.replace(kind, rank=lower)
        return f"{at_rank!r} takes {size * lower / kind.rank / GIB:.3g} GiB"
    if not hasattr(kind, "order") or not is_unitwise(cell):
        return ""
    return _that_fits(unitwise(cell), params, mask, kind.order, streams, room)


def _that_fits(
    cell: UnitwiseCell, params: Params, mask: Params, order: int | None, streams: int, room: int
) -> str:
    """The highest order below `order` that fits; '' where none does."""
    for lower in range(min(order or 4, 4) - 1, 0, -1):
        size = streams * _of_a_stream(cell, params, mask, lower)
        if size <= room:
            return f"SnAp(order={lower}) takes {size / GIB:.3g} GiB; a sparser mask may take less"
    return ""


def _of_a_stream(cell: UnitwiseCell, params: Params, mask: Params, order: int | None) -> int:
    """Bytes of the influence of order n, None for all; what a pattern rounds up is left out."""
    number = influence_dtype(params).itemsize
    if order == 1:  # which keeps absent weights too
        return cell.states * number * sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
    pairs = int(reach.reach(reach.reads(cell, params, mask), order).sum())
    weights = len(cell.local)
    for name in (*cell.inputs, *cell.recurrent):
        kernel: Any = mask.get(name, {}).get("kernel")
        shape = params[name]["kernel"].shape
        weights += shape[0] if kernel is None else int(np.asarray(kernel).sum(0).max(initial=0))
        weights += "bias" in params[name]
    return cell.states * number * pairs * weights


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def _bytes(influence: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(influence))


def _memory() -> int:
    """Bytes of the device that arrays are put on."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    """Bytes that control groups, as containers and job schedulers set them, leave this process."""
    for line in _read(_OWN_GROUPS).splitlines():  # number:controllers:path
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = _GROUPS, "memory.max"  # version 2
        elif "memory" in controllers.split(","):
            top, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):  # those above bind as well
            limit = _read(top / folder / name).strip()
            if limit.isdigit():  # "max" is none
                yield int(limit)


def _read(file: Path) -> str:
    """What is in a file; '' where there is none, or none that we may see."""
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""
