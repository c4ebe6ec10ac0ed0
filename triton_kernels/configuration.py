"""Which tile a program computes: a plain function of shape, dtype and layout, so that nothing is tuned at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .launch import INTERPRETED, extent
from .stencil import is_looped


@dataclass(frozen=True)
class Tile:
    """What a program computes: for `channels` channels a box of outputs.

    `channels`, `groups` and `lanes` are spread over threads; `depths`, `rows` and `columns` are the neighbours that
    one thread computes, from blocks of `vector` inputs. The groups lie along the height, `groups_in_plane` of them,
    and then along the depth; the lanes along the width.
    """

    dilations: tuple[int, ...]
    kernel_size: int
    spatial: int
    looped: bool
    channels_fastest: bool
    wide: bool
    even: bool
    channels: int
    groups: int
    groups_in_plane: int
    lanes: int
    depths: int
    rows: int
    columns: int
    vector: int

    @property
    def outputs(self) -> int:
        """How many outputs a thread computes for each of its places in the tile."""
        return self.depths * self.rows * self.columns

    @property
    def blocks(self) -> int:
        return self.outputs // self.vector

    def counts(self, sizes: Sequence[int]) -> tuple[int, int, int, int]:
        """How many tiles cover (channels, depth, height, width)."""
        planes = self.groups // self.groups_in_plane
        steps = (self.channels, planes * self.depths, self.groups_in_plane * self.rows, self.lanes * self.columns)
        return tuple(-(-size // step) for size, step in zip(sizes, steps, strict=True))  # type: ignore[return-value]


def power_of_two(value: int) -> int:
    """The least power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()


def vector_length(tensors: Sequence[Tensor], leaders: int) -> int:
    """How many neighbours along the width are loaded at once: 16 bytes, where every row of every tensor starts aligned.

    The first `leaders` tensors must have neighbours side by side; the others may even be expanded.
    """
    vector = 2 if tensors[0].dtype is torch.float64 else 4
    for place, tensor in enumerate(tensors):
        aligned = tensor.shape[-1] % vector == 0 and all(stride % vector == 0 for stride in tensor.stride()[:-1])
        if not aligned or (place < leaders and tensor.stride(-1) != 1):
            return 1
    return vector


def gate_tile(
    tensors: Sequence[Tensor], leaders: int, dilations: Sequence[int], kernel_size: int, *, correlated: bool
) -> Tile:
    """The tile for a stencil over `tensors[0]`; `correlated` if the gradient of the weights is summed beside it."""
    field = tensors[0]
    spatial = field.dim() - 2
    _, channels, *_, height, width = field.shape
    depth = field.shape[2] if spatial == 3 else 1
    looped = is_looped(tuple(dilations), kernel_size, spatial)
    channels_fastest = channels > 1 and field.stride(1) == 1 and field.stride(-1) != 1
    # 16-bit numbers by twos beside one another: a load narrower than 32 bits wastes half of its bandwidth.
    threads = 256 if INTERPRETED or (channels_fastest and field.element_size() == 2) else 128
    vector = 1 if looped or channels_fastest else vector_length(tensors, leaders)
    columns = vector
    if channels_fastest and not looped and not INTERPRETED:
        columns = 4 if field.element_size() > 2 else 2
    rows = rows_a_thread(spatial, looped, correlated, channels_fastest)
    while rows > 1 and rows >= 2 * height:
        rows //= 2
    lanes_needed = power_of_two(-(-width // columns))
    groups_in_plane = power_of_two(-(-height // rows))
    groups_needed = groups_in_plane * power_of_two(depth)
    if channels_fastest:
        block_channels = min(power_of_two(channels), 32 if field.element_size() > 2 else 64)
        lanes = min(lanes_needed, max(threads // block_channels, 1))
        groups = min(groups_needed, max(threads // (block_channels * lanes), 1))
    else:
        lanes = min(lanes_needed, 32)
        groups = min(groups_needed, threads // lanes)
        block_channels = min(power_of_two(channels), max(threads // (lanes * groups), 1))
    groups_in_plane = min(groups_in_plane, groups)
    within = [extent(t.shape[2:], t.stride()[2:]) + (block_channels - 1) * abs(t.stride(1)) for t in tensors]
    return Tile(
        dilations=tuple(dilations),
        kernel_size=kernel_size,
        spatial=spatial,
        looped=looped,
        channels_fastest=channels_fastest,
        wide=needs_int64(max(within)),
        even=channels % block_channels == 0,
        channels=block_channels,
        groups=groups,
        groups_in_plane=groups_in_plane,
        lanes=lanes,
        depths=1,
        rows=rows,
        columns=columns,
        vector=vector,
    )


def rows_a_thread(spatial: int, looped: bool, correlated: bool, channels_fastest: bool) -> int:
    """More rows share more loads (in 2-D 5.2 numbers an output at 8 rows and 4 columns, 7.5 at 4) and compile longer.

    Triton's time to compile grows faster than the square of what is unrolled, which bounds 3-D. The 25 sums of the
    weight gradient leave registers for half as many rows (190 registers at 8 rows, 96 at 4).
    """
    if looped:
        return 1
    if INTERPRETED:
        return 2 if spatial == 2 else 1
    rows = 8 if spatial == 2 else 2
    if channels_fastest:
        rows //= 2 ** (spatial - 1)
    return max(rows // 2 if correlated else rows, 1)


def needs_int64(distance: int) -> bool:
    """Whether offsets from the first element of a tile's channels pass 32 bits."""
    return distance >= 2**31


def warps(tile: Tile) -> int:
    return 1 if INTERPRETED else max(1, min(4, tile.channels * tile.groups * tile.lanes // 32))

