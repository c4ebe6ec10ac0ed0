"""What a sum of dilated convolutions reads, worked out while a kernel is compiled.

The dilated kernels are merged into one stencil of distinct taps: their centres coincide, so three 3x3 kernels have 25
taps and not 27, three 3x3x3 kernels 79 and not 81. A thread computes DEPTHS x ROWS x COLUMNS neighbouring outputs
and loads blocks of VECTOR neighbouring inputs; `plan` says which blocks those are and which output takes which
tap of each, so that a block is loaded once for all outputs of the thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import triton

# With more distinct taps the stencil is a loop at run time: unrolled it would compile for minutes.
LONGEST_UNROLLED_STENCIL = 160



class Tap(NamedTuple):
    """A place of the stencil. A weight is counted as m * kernel_size**spatial + its place in kernel m."""

    offset: tuple[int, int, int]  # depth, row, column
    weights: tuple[int, ...]  # those that meet here: several where kernels share their centres


class Row(NamedTuple):
    """What is read of one row, counted from the first output of the thread.

    Its blocks are loaded and taken apart into single columns, the parts; a window is `vector` neighbouring parts
    from one of them on, put together again: the row as one output block sees it through one tap.
    """

    row: int
    blocks: tuple[int, ...]  # the first column of each block
    windows: tuple[int, ...]  # the first part of each
    by_output: tuple[tuple[tuple[int, int], ...], ...]  # for each output block: (window, place of the tap in its group)
    by_tap: tuple[tuple[tuple[int, int], ...], ...]  # for each tap: (part, output)


class Group(NamedTuple):
    """All that is read of one plane, at `depth` from the first output."""

    depth: int
    taps: tuple[Tap, ...]
    rows: tuple[Row, ...]
    correlations: tuple[int, ...]  # the place of a tap once for every weight that meets there
    first_correlation: int  # how many those of the groups before are


@dataclass(frozen=True, eq=False)
class Plan:
    """Opaque to Triton, which otherwise would walk through all of it at every mention."""

    groups: tuple[Group, ...]


@triton.constexpr_function
def distinct_taps(dilations: tuple[int, ...], kernel_size: int, spatial: int, mirrored: bool) -> tuple[Tap, ...]:
    half, places = kernel_size // 2, kernel_size**spatial
    found: dict[tuple[int, int, int], list[int]] = {}
    for m, dilation in enumerate(dilations):
        for place in range(places):
            column = (place % kernel_size - half) * dilation
            row = (place // kernel_size % kernel_size - half) * dilation
            depth = (place // kernel_size**2 - half) * dilation if spatial == 3 else 0
            offset = (-depth, -row, -column) if mirrored else (depth, row, column)
            found.setdefault(offset, []).append(m * places + place)
    return tuple(Tap(offset, tuple(weights)) for offset, weights in sorted(found.items()))


@cache
def is_looped(dilations: tuple[int, ...], kernel_size: int, spatial: int) -> bool:
    return len(distinct_taps(dilations, kernel_size, spatial, False)) > LONGEST_UNROLLED_STENCIL


@cache
def correlation_order(dilations: tuple[int, ...], kernel_size: int, spatial: int) -> tuple[int, ...]:
    """Which weight each row of the workspace of weight gradients belongs to."""
    if is_looped(dilations, kernel_size, spatial):
        return tuple(range(len(dilations) * kernel_size**spatial))
    groups = planned(dilations, kernel_size, spatial, True, 1, 1, 1, 1).groups
    return tuple(weight for group in groups for tap in group.taps for weight in tap.weights)


@triton.constexpr_function
def planned(
    dilations: tuple[int, ...],
    kernel_size: int,
    spatial: int,
    mirrored: bool,
    depths: int,
    rows: int,
    columns: int,
    vector: int,
) -> Plan:
    planes: dict[int, dict[Tap, list[int]]] = {}
    for depth in range(depths):
        for tap in distinct_taps(dilations, kernel_size, spatial, mirrored):
            planes.setdefault(depth + tap.offset[0], {}).setdefault(tap, []).append(depth)
    groups: list[Group] = []
    for plane, used in sorted(planes.items()):
        first = groups[-1].first_correlation + len(groups[-1].correlations) if groups else 0
        correlations = tuple(place for place, tap in enumerate(used) for _ in tap.weights)
        read = rows_of_plane(used, depths, rows, columns, vector)
        groups.append(Group(plane, tuple(used), read, correlations, first))
    return Plan(tuple(groups))


@triton.constexpr_function
def rows_of_plane(
    used: dict[Tap, list[int]], depths: int, rows: int, columns: int, vector: int
) -> tuple[Row, ...]:
    """`used` gives for each tap the output planes that it serves."""
    # For each row: (first column of a window, output block, place of the tap).
    seen: dict[int, list[tuple[int, int, int]]] = {}
    for place, tap in enumerate(used):
        _, down, right = tap.offset
        for depth in used[tap]:
            for row in range(rows):
                for block in range(columns // vector):
                    output = (depth * rows + row) * (columns // vector) + block
                    seen.setdefault(row + down, []).append((block * vector + right, output, place))
    outputs = depths * rows * columns // vector
    return tuple(row_of_plane(row, seen[row], outputs, len(used), vector) for row in sorted(seen))


@triton.constexpr_function
def row_of_plane(row: int, uses: list[tuple[int, int, int]], outputs: int, taps: int, vector: int) -> Row:
    columns = sorted({start + element for start, _, _ in uses for element in range(vector)})
    blocks = sorted({column // vector * vector for column in columns})
    part = {block + element: i * vector + element for i, block in enumerate(blocks) for element in range(vector)}
    starts = sorted({start for start, _, _ in uses})
    by_output = tuple(
        tuple((starts.index(start), place) for start, output, place in uses if output == wanted)
        for wanted in range(outputs)
    )
    by_tap = tuple(
        tuple(
            (part[start + element], output * vector + element)
            for start, output, place in uses
            if place == wanted
            for element in range(vector)
        )
        for wanted in range(taps)
    )
    return Row(row, tuple(blocks), tuple(part[start] for start in starts), by_output, by_tap)


# What a kernel calls while it is compiled. It can neither take the length of what it finds in a constant nor follow
# a path through one, so it asks for both here: entry(PLAN, "groups", 0, "rows", 3, "row").


@triton.constexpr_function
def plan(tile, mirrored):
    return planned(
        tile.dilations, tile.kernel_size, tile.spatial, mirrored, tile.depths, tile.rows, tile.columns, tile.vector
    )


@triton.constexpr_function
def entry(nested: Any, *path: Any) -> Any:
    for step in path:
        nested = getattr(nested, step) if isinstance(step, str) else nested[step]
    return nested


@triton.constexpr_function
def count(nested: Any, *path: Any) -> int:
    for step in path:
        nested = getattr(nested, step) if isinstance(step, str) else nested[step]
    return len(nested)


@triton.constexpr_function
def power_of_two_at_least(value):
    return 1 << max(value - 1, 0).bit_length()
