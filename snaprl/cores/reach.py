"""Which units a weight reaches within n steps of the core, as lists of fixed shapes.

    S_1 = nz(I);   S_{n+1} = S_1 | nz(D) S_n                                    (4)

All weights that enter unit q share their rows of the influence, so the pattern is one of *pairs*
(r, q): unit r hears of the weights into unit q. A row of the influence then holds, for one pair,
the weights that enter q, of which a sparse layer keeps those that exist.

Masks give who reads whom, that gives pairs, and pairs give the lists by which (14) and (15) are
gathers. All of it is numpy, once per pattern. Lists are padded to the longest; pairs that need long
ones are few and stand apart, in a tier of their own. A pattern may be fitted into the shapes of
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


class Pattern(NamedTuple):
    """Pairs (r, q), each unit's pair with itself first, and how they feed each other."""

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
    reads = np.zeros((size, size), bool)
    for name in cell.recurrent:
        reads |= _kernel_mask(mask, name, params[name]["kernel"].shape)
    np.fill_diagonal(reads, False)
    reached = reach(reads, order)
    unit, row = np.nonzero(reached)
    hears = _neighbours(reads, reached, unit, row).sum(-1)
    tells = _neighbours(reads.T, reached, unit, row).sum(-1)
    own = unit == row
    limit = _short(hears[~own]) if room is None else room["near lists"]
    far = ~own & (hears > limit)
    if room is not None:  # near pairs that are too many go where there is room
        spare = np.nonzero(~own & ~far)[0][room["near pairs"] :]
        far[spare] = True
    masked = {
        name: _kernel_mask(mask, name, params[name]["kernel"].shape)
        for name in (*cell.inputs, *cell.recurrent)
        if "kernel" in mask.get(name, {})
    }
    needs = {
        "near pairs": int((~own & ~far).sum()),
        "near lists": int(hears[~own & ~far].max(initial=0)),
        "far pairs": int(far.sum()),
        "far lists": int(hears[far].max(initial=0)),
        "own lists": int(hears[own].max(initial=0)),
        "own lists told": int(tells[own].max(initial=0)),
        "lists told": int(tells[~own].max(initial=0)),
        "reach": int(reached.sum(-1).max()),
    } | {f"fan-in of {name}": int(kept.sum(0).max(initial=0)) for name, kept in masked.items()}
    needs = {what: max(size, 1) for what, size in needs.items()}  # checkpoints hold no empty arrays
    room = needs if room is None else room
    _check_room(needs, room)
    # a unit's pair with itself first, then the near ones, then the far ones; those that are
    # nobody's are left over at the end of the near and of the far ones
    total = size + room["near pairs"] + room["far pairs"]
    places = np.concatenate(
        [
            np.nonzero(own)[0],
            _padded(np.nonzero(~own & ~far)[0], room["near pairs"], len(unit)),
            _padded(np.nonzero(far)[0], room["far pairs"], len(unit)),
        ]
    )
    unit, row = (np.append(x, size)[places] for x in (unit, row))
    pair = np.full((size + 1, size + 1), -1)
    pair[unit, row] = np.arange(total)
    pair = pair[:size, :size]
    columns, position = _columns(pair, room["reach"], total)
    bounds = np.cumsum([0, size, room["near pairs"], room["far pairs"]])
    lengths = (room["own lists"], room["near lists"], room["far lists"])
    return Pattern(
        row=row.astype(np.int32),
        unit=unit.astype(np.int32),
        position=np.pad(position, (0, 1))[unit, row].astype(np.int32),
        columns=columns,
        heard=_tiers(reads.T, reached, pair, unit, row, bounds, lengths),
        told=_tiers(
            reads,
            reached,
            pair,
            unit,
            row,
            bounds[[0, 1, 3]],
            (room["own lists told"], room["lists told"]),
        ),
        fan_in={name: fan_in(kept, room[f"fan-in of {name}"]) for name, kept in masked.items()},
    )


def room_of(pattern: Pattern) -> Room:
    """The shapes of a pattern, for another one that is to have the same."""
    own, near, far = pattern.heard
    return {
        "near pairs": near.pairs.shape[1],
        "near lists": near.pairs.shape[0],
        "far pairs": far.pairs.shape[1],
        "far lists": far.pairs.shape[0],
        "own lists": own.pairs.shape[0],
        "own lists told": pattern.told[0].pairs.shape[0],
        "lists told": pattern.told[1].pairs.shape[0],
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


def reach(reads: np.ndarray, order: int | None) -> np.ndarray:
    """Which units r hear of a weight into q: `[q, r]`, of `reads [l, r]`, "r reads l" (4)."""
    now = np.eye(len(reads), dtype=bool)
    steps = 1
    while order is None or steps < order:
        further = now | ((now.astype(np.float32) @ reads.astype(np.float32)) > 0)
        if (further == now).all():
            break
        now, steps = further, steps + 1
    return now


def _neighbours(
    reads: np.ndarray, reached: np.ndarray, unit: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """For each pair (r, q) `[E, l]`: is (l, q) a pair, and does r read l?"""
    return reads.T[row] & reached[unit]


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
        there = np.zeros((len(part), size), bool)
        real = unit[part] < size
        q, r = unit[part][real], row[part][real]
        there[real] = reads[r] & reached[q]
        units = np.full((length, len(part)), size, np.int32)
        pairs = np.broadcast_to(part, units.shape).astype(np.int32)
        which, other = np.nonzero(there)
        place = (np.cumsum(there, -1) - 1)[which, other]
        units[place, which] = other
        pairs[place, which] = pair[unit[part][which], other]
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
                f"is room for {room.get(what, 0)}); start from a mask that is at least as dense, "
                "or make the core anew"
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
