"""Which units a weight reaches within n steps of the core, as lists of fixed shapes.

    S_1 = nz(I);   S_{n+1} = S_1 | nz(D) S_n                                    (4)

All weights that enter unit q share their rows of the influence, so the pattern is one of *pairs*
(r, q): unit r hears of the weights into unit q. A row of the influence then holds, for one pair,
the weights that enter q, of which a sparse layer keeps those that exist.

Masks give who reads whom, that gives pairs, and pairs give the lists by which (14) and (15) are
gathers. All of it is numpy, once per pattern. Lists are padded to the longest; pairs that need long
ones are few and stand apart, in tiers of their own. A pattern may be fitted into the shapes of
another, so that it can change without compiling: pairs that are too many are nobody's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from snaprl.cores.types import Array, Params
from snaprl.cores.unitwise import UnitwiseCell

EVERYTHING = None  # an order without end: the pattern is followed until it closes


Indices = Array | np.ndarray  # int32


class FanIn(NamedTuple):
    """The inputs that a sparse layer has."""

    inputs: Indices  # [K, N]  which input a slot holds; the number of inputs where it holds none
    slot: Indices  # [inputs, N]  in which slot an input lies; K where there is no weight


class Tier(NamedTuple):
    """For some of the pairs (r, q), in their order: other pairs (l, q) that they are joined to."""

    pairs: Indices  # [P, n]  which pair (l, q) is; the pair itself where the list is over
    units: Indices  # [P, n]  l; N where the list is over


Room = Mapping[str, int]  # how large the arrays of a pattern are, by what they hold
# the parts of the pairs that are not a unit's with itself, in their order
PARTS = {
    "near pairs": 1,
    "pairs told of many": 2,
    "far pairs": 3,
    "pairs that hear of many": 4,
}
FAR, FAR_TOLD = ("far pairs", "pairs that hear of many"), ("far pairs", "pairs told of many")


class Pattern(NamedTuple):
    """Pairs (r, q), each unit's pair with itself first, and how they feed each other.

    The others stand in four parts, so that each tier is one stretch of them: pairs whose lists are
    short both ways, that are told of many, that hear and are told of many, and that hear of many.
    """

    row: Indices  # [E]  r
    unit: Indices  # [E]  q
    position: Indices  # [E]  the place of a pair among those of its q
    columns: Indices  # [S, N]  the pairs of q; E where the list is over
    heard: tuple[Tier, ...]  # l such that r reads l, r itself left out: (14)
    told: tuple[Tier, ...]  # l such that l reads r, r itself left out: (15)
    fan_in: Mapping[str, FanIn]  # of the sparse layers; the others hold every input


def pattern(
    cell: UnitwiseCell,
    params: Params,
    mask: Params,
    order: int | None,
    room: Room | None = None,
) -> Pattern:
    """Returns the pattern of order n of a masked cell.

    Args:
      cell: the cell.
      params: its parameters, or their shapes.
      mask: 0/1 numpy arrays shaped like some of `params`; what is missing is dense.
      order: n of (4), at least 1, or `EVERYTHING`.
      room: the shapes to use; None for the smallest.

    Raises:
      ValueError: the pattern does not fit into `room`.
    """
    size = cell.features
    there = reads(cell, params, mask)
    reached = reach(there, order)
    unit, row = np.nonzero(reached)
    hears, tells = (_common(reached, x)[unit, row] for x in (there, there.T))
    own = unit == row
    if room is None:
        near, near_told = _short(hears[~own]), _short(tells[~own])
    else:
        near, near_told = room["near lists"], room["near lists told"]
    part = _part(own, hears > near, tells > near_told)
    if room is not None:
        _fit(part, room)
    long, long_told = (np.isin(part, [PARTS[name] for name in names]) for names in (FAR, FAR_TOLD))
    masked = {
        name: _kernel_mask(mask, name, params[name]["kernel"].shape)
        for name in (*cell.inputs, *cell.recurrent)
        if "kernel" in mask.get(name, {})
    }
    needs = {name: int((part == k).sum()) for name, k in PARTS.items()}
    needs |= {
        "own lists": int(hears[own].max(initial=0)),
        "near lists": int(hears[~own & ~long].max(initial=0)),
        "far lists": int(hears[long].max(initial=0)),
        "own lists told": int(tells[own].max(initial=0)),
        "near lists told": int(tells[~own & ~long_told].max(initial=0)),
        "far lists told": int(tells[long_told].max(initial=0)),
        "reach": int(reached.sum(-1).max()),
    } | {f"fan-in of {name}": int(kept.sum(0).max(initial=0)) for name, kept in masked.items()}
    needs = {what: max(size, 1) for what, size in needs.items()}  # checkpoints hold no empty arrays
    for far, short in (("far lists", "near lists"), ("far lists told", "near lists told")):
        needs[far] = max(needs[far], needs[short])  # so that others may move there
    room = needs if room is None else room
    _check_room(needs, room)
    # those that are nobody's are left over at the end of each part
    sizes = {name: room[name] for name in PARTS}
    total = size + sum(sizes.values())
    places = [_padded(np.nonzero(part == PARTS[k])[0], n, len(unit)) for k, n in sizes.items()]
    places = np.concatenate([np.nonzero(own)[0], *places])
    unit, row = (np.append(x, size)[places] for x in (unit, row))
    pair = np.full((size + 1, size + 1), -1)
    pair[unit, row] = np.arange(total)
    pair = pair[:size, :size]
    columns, position = _columns(pair, room["reach"], total)
    heard, told = _stretches(size, sizes)
    lengths = (room["own lists"], room["near lists"], room["far lists"])
    short_told, long_told = room["near lists told"], room["far lists told"]
    lengths_told = (room["own lists told"], short_told, long_told, short_told)
    return Pattern(
        row=row.astype(np.int32),
        unit=unit.astype(np.int32),
        position=np.pad(position, (0, 1))[unit, row].astype(np.int32),
        columns=columns,
        heard=_tiers(there.T, reached, pair, unit, row, heard, lengths),
        told=_tiers(there, reached, pair, unit, row, told, lengths_told),
        fan_in={name: fan_in(kept, room[f"fan-in of {name}"]) for name, kept in masked.items()},
    )


def room_of(pattern: Pattern) -> Room:
    """The shapes of a pattern, for another one that is to have the same."""
    (own, near, far), (own_told, short, long, rest) = pattern.heard, pattern.told
    return {
        "near pairs": short.pairs.shape[1],
        "pairs told of many": near.pairs.shape[1] - short.pairs.shape[1],
        "far pairs": far.pairs.shape[1] - rest.pairs.shape[1],
        "pairs that hear of many": rest.pairs.shape[1],
        "own lists": own.pairs.shape[0],
        "near lists": near.pairs.shape[0],
        "far lists": far.pairs.shape[0],
        "own lists told": own_told.pairs.shape[0],
        "near lists told": short.pairs.shape[0],
        "far lists told": long.pairs.shape[0],
        "reach": pattern.columns.shape[0],
    } | {f"fan-in of {name}": lists.inputs.shape[0] for name, lists in pattern.fan_in.items()}


def pair_table(pattern: Pattern) -> np.ndarray:
    """Which pair (r, q) is, `[N + 1, N + 1]` by q and r; the number of pairs where it is none."""
    size = pattern.columns.shape[1]
    unit, row = np.asarray(pattern.unit), np.asarray(pattern.row)
    table = np.full((size + 1, size + 1), len(unit))
    real = unit < size
    table[unit[real], row[real]] = np.nonzero(real)[0]
    return table


def reads(cell: UnitwiseCell, params: Params, mask: Params) -> np.ndarray:
    """Which units r read l by a recurrent weight that is there: `[l, r]`, r itself left out."""
    found = np.zeros((cell.features, cell.features), bool)
    for name in cell.recurrent:
        found |= _kernel_mask(mask, name, params[name]["kernel"].shape)
    np.fill_diagonal(found, False)
    return found


def reach(reads: np.ndarray, order: int | None) -> np.ndarray:
    """Which units r hear of a weight into q: `[q, r]`, of `reads [l, r]`, "r reads l" (4)."""
    now = np.eye(len(reads), dtype=bool)
    steps = 1
    while (order is None or steps < order) and not now.all():
        further = now | (reads if steps == 1 else _common(now, reads) > 0)
        if (further == now).all():
            break
        now, steps = further, steps + 1
    return now


def heard(reached: np.ndarray, reads: np.ndarray) -> int:
    """How many pairs all pairs (r, q) hear of: the entries of all their lists."""
    if reached.all():
        return len(reached) * int(reads.sum())
    return int((reached * _common(reached, reads)).sum())


def _common(reached: np.ndarray, reads: np.ndarray) -> np.ndarray:
    """For (q, r), how many l there are such that q reaches l and r reads l: `[q, r]`."""
    return (reached.astype(np.float32) @ reads.astype(np.float32)).astype(int)


def _part(own: np.ndarray, hears_many: np.ndarray, told_of_many: np.ndarray) -> np.ndarray:
    """In which of `PARTS` each pair stands; 0 for that of a unit with itself."""
    there = np.where(
        hears_many,
        np.where(told_of_many, PARTS["far pairs"], PARTS["pairs that hear of many"]),
        np.where(told_of_many, PARTS["pairs told of many"], PARTS["near pairs"]),
    )
    return np.where(own, 0, there)


def _fit(part: np.ndarray, room: Room) -> None:
    """Moves pairs that are too many for their part to where lists are as long or longer, in place.

    Whatever is a part of an old pattern then fits where that was: as many pairs as need longer
    lists no more have left their places there.
    """
    for name, others in (
        ("pairs told of many", ["far pairs"]),
        ("pairs that hear of many", ["far pairs"]),
        ("near pairs", ["pairs told of many", "pairs that hear of many", "far pairs"]),
    ):
        for other in others:
            over = np.nonzero(part == PARTS[name])[0][room[name] :]
            free = room[other] - int((part == PARTS[other]).sum())
            part[over if other == "far pairs" else over[: max(free, 0)]] = PARTS[other]


def _stretches(units: int, sizes: Room) -> tuple[np.ndarray, np.ndarray]:
    """Where the tiers of those that are heard, and of those that are told, begin and end."""
    near, told, far, hear = sizes.values()
    heard = np.cumsum([0, units, near + told, far + hear])
    return heard, np.cumsum([0, units, near, told + far, hear])


def _short(counts: np.ndarray) -> int:
    """The list length at which splitting the pairs into two tiers costs least."""
    longest = int(counts.max(initial=0))
    cost = [k * (counts <= k).sum() + longest * (counts > k).sum() for k in range(longest + 1)]
    return int(np.argmin(cost))


def _tiers(
    reads: np.ndarray,
    reached: np.ndarray,
    pair: np.ndarray,
    unit: np.ndarray,
    row: np.ndarray,
    bounds: np.ndarray,
    lengths: tuple[int, ...],
) -> tuple[Tier, ...]:
    """The lists of pairs, cut at `bounds`: for (r, q) the pairs (l, q) where `reads [r, l]`."""
    size = len(pair)
    tiers = []
    for start, stop, length in zip(bounds[:-1], bounds[1:], lengths, strict=True):
        part = np.arange(start, stop)
        real = np.nonzero(unit[part] < size)[0]
        units = np.full((length, len(part)), size, np.int32)
        pairs = np.broadcast_to(part, units.shape).astype(np.int32)
        for some in np.array_split(real, 1 + len(real) * size // 2**26):  # of 64 MiB at most
            q, r = unit[part][some], row[part][some]
            there = reads[r] & reached[q]
            which, other = np.nonzero(there)
            place = (np.cumsum(there, -1, dtype=np.int32) - 1)[which, other]
            units[place, some[which]] = other
            pairs[place, some[which]] = pair[q[which], other]
        tiers.append(Tier(pairs, units))
    return tuple(tiers)


def _columns(pair: np.ndarray, longest: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of each q, `[S, N]`, and the place of (r, q) among them, `[q, r]`."""
    there = pair >= 0
    position = np.where(there, np.cumsum(there, -1) - 1, 0)
    columns = np.full((longest, len(pair)), total, np.int32)
    unit, row = np.nonzero(there)
    columns[position[unit, row], unit] = pair[unit, row]
    return columns, position


def _padded(values: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=filler)


def _check_room(needs: Room, room: Room) -> None:
    """Raises where something needs more than its place."""
    for what, need in needs.items():
        if need > room.get(what, 0):
            raise ValueError(
                f"the new pattern does not fit where the old one was ({what}: {need} where there "
                f"is room for {room.get(what, 0)}); make the core anew with the new mask, or from "
                "the start with a larger room in Mask(mask, room=...), which a fan-in that is the "
                "same for all units never has"
            )


def fan_in(mask: np.ndarray, most: int) -> FanIn:
    """The lists of one kernel's mask `[inputs, N]`, with room for `most` inputs per unit."""
    size, units = mask.shape
    slot = np.where(mask, np.cumsum(mask, 0) - 1, most).astype(np.int32)
    inputs = np.full((most, units), size, np.int32)
    source, unit = np.nonzero(mask)
    inputs[slot[source, unit], unit] = source
    return FanIn(inputs, slot)


def _kernel_mask(mask: Params, name: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf: Any = mask.get(name, {}).get("kernel")
    return np.ones(shape, bool) if leaf is None else np.asarray(leaf).astype(bool)
