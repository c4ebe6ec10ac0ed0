"""mixed_logit_statistics in Triton: one large launch forward, one backward, and small ones that add up their tables.

    Z_i = level i, up-sampled;  P_i = Z_i, or its probabilities;  maps: every Z_i, and for each subset S and operator
    sum P_i,  prod P_i,  W_S [P_i] + b_S,  sum a_i P_i;  of each map sums over pixels of CE, p y, p, p^2 (, log p)

A program owns a scratch and takes tile after tile of one image. It up-samples the levels of a tile once, 256 pixels in
41 kB for 4 levels of 9 classes, and then goes over all maps, block by block of 512 numbers a warp. What is mixed comes
from the scratch (L1, else L2), never from memory: the 1584 warps at work hold 65 MB forward, at most 128 MB with all
tables. Loops over maps, members and classes run at run time, with one body for all operators, so that code and
registers do not grow with them. The alternatives, in numbers of 24x9x224^2 and 48 maps: up-sampling anew for each
subset costs 2000 loads a pixel instead of 500; levels and their gradients in registers need 128 of them for 4 levels,
and an exchange between threads for each block and sum, which is as much work as the exponentials.

The backward makes each map again and adds its gradient to those of its parts in the scratch. Its tiles are whole rows:
a program adds up its rows along the columns, and what is left, (7 + 14 + 28 + 56) / 224 of one full-size map or 20 MB,
is added up along rows and depths by a second kernel. Each sum has one order: no atomics, the same bits on every run.

Work: 48 maps x 16 padded classes x about 12 instructions forward, 9000 a pixel where the exponentials alone are 432;
padding 9 classes to 16 is the price of a tile of classes and pixels. concat's products are blocks of 16 or 32 in
tl.dot, in float32 unless torch allows TF32. What the compiler made of it for sm_90 (48 maps, float32, no spills): 175
registers forward, 183 backward, 5 to 8 s of a processor each to compile. None of it is a measured time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .launch import TRITON_DTYPES, compute_dtype, extent, launch, needs_int64, power_of_two, spatial_strides
from .logit_mixing_kernels import finish_kernel, gradient_kernel, statistics_kernel
from .logit_mixing_maps import CODES, SUBSETS_IN_A_WORD
from .logit_mixing_tile import Setting, add_up_rows_kernel

__all__ = ["backward", "forward"]

# A thread holds 16 numbers of a block (4 of float64): 4 classes times 4 pixels, as the compiler lays them out.
NUMBERS_A_WARP = 512
# Pixels of a tile. More would save exchanges between threads, and would not stay in the caches.
TILE = 256
# Programs at work, times their warps: 12 on each of the 132 multiprocessors of an H200.
WARPS = 1584
# Bytes of scratch and tables of the programs at work, and of the tables of rows: what bounds their number.
WORKSPACE = 1 << 27
# Numbers that a program of the small kernels adds up.
ROWS_BLOCK = 64
FINISHED = 64


@cache
def subset_words(levels: int) -> tuple[int, tuple[int, ...]]:
    """How many subsets of two levels or more there are, and the levels of each as bits, ten subsets in a word."""
    bits = [
        sum(1 << level for level in subset)
        for size in range(2, levels + 1)
        for subset in itertools.combinations(range(levels), size)
    ]
    starts = range(0, max(len(bits), 1), SUBSETS_IN_A_WORD)
    words = [sum(each << (6 * i) for i, each in enumerate(bits[s : s + SUBSETS_IN_A_WORD])) for s in starts]
    return len(bits), tuple(words)


@dataclass(frozen=True)
class Problem:
    """Sizes, and what every kernel here is given of them."""

    logits: tuple[Tensor, ...]
    target: Tensor
    parameters: tuple[Tensor | None, ...]
    setting: Setting
    ignore_index: int

    @property
    def batch(self) -> int:
        return self.logits[0].shape[0]

    @property
    def classes(self) -> int:
        return self.logits[0].shape[1]

    @property
    def levels(self) -> int:
        return len(self.logits)

    @property
    def full(self) -> tuple[int, int, int]:
        """(depth, height, width) of the target; an image has depth 1."""
        return _sizes(self.target, self.setting.spatial)

    @property
    def elements(self) -> int:
        return math.prod(self.full)

    @property
    def subsets(self) -> int:
        return subset_words(self.levels)[0]

    @property
    def pairs(self) -> int:
        """The sizes of all subsets, added up."""
        return self.levels * ((1 << (self.levels - 1)) - 1)

    @property
    def maps(self) -> int:
        return self.levels + self.subsets * len(self.setting.operators)

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.logits[0].dtype)

    def sources(self) -> list[Any]:
        """The inputs, as the first arguments of both kernels."""
        strides = self.target.stride()
        if self.setting.multi_label:
            of_target = spatial_strides(self.target)
        else:
            of_target = (strides[0], 0, *strides[1:]) if len(strides) == 4 else (strides[0], 0, 0, *strides[1:])
        return [
            self.logits,
            tuple(map(spatial_strides, self.logits)),
            tuple(_sizes(level, self.setting.spatial) for level in self.logits),
            self.target,
            of_target,
            *self.parameters,
        ]

    def numbers(self) -> list[Any]:
        codes = sum(CODES[operator] << (2 * i) for i, operator in enumerate(self.setting.operators))
        words = subset_words(self.levels)[1]
        return [words, codes, self.maps, self.subsets, self.pairs, self.levels, self.classes, self.full]


@dataclass(frozen=True)
class Programs:
    """How the tiles of all images are shared among programs. None of it depends on the device: the same bits on all."""

    positions: int  # of a tile
    pixels: int  # the same, in whole blocks
    tiles: int  # of an image
    an_image: int  # programs
    images: int  # of a launch
    scratch: int  # numbers a program
    label_scratch: int


def describe(
    logits: Sequence[Tensor],
    target: Tensor,
    parameters: Sequence[Tensor | None],
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    log_probability: bool,
) -> Problem:
    dtype = compute_dtype(logits[0].dtype)
    classes = power_of_two(logits[0].shape[1])
    spatial = logits[0].dim() - 2
    multi_label = target.dim() == spatial + 2
    elements = math.prod(target.shape[-spatial:])
    numbers = NUMBERS_A_WARP if dtype is torch.float32 else NUMBERS_A_WARP // 4
    pixels = min(max(32, NUMBERS_A_WARP // classes), max(32, power_of_two(elements)))
    setting = Setting(
        operators=tuple(operators) if len(logits) > 1 else (),
        activation=activation,
        probabilities=domain == "probabilities",
        multi_label=multi_label,
        ignore=ignore_index is not None,
        align_corners=align_corners,
        log_probability=log_probability,
        spatial=spatial,
        classes=classes,
        pixels=pixels,
        chunk=max(classes >> spatial, 1),  # 16 loads at once for each thread
        wide=any(needs_int64(extent(t.shape[1:], t.stride()[1:])) for t in (*logits, target)),
        product=16 if classes <= 16 else 32,
        precision="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        warps=min(max(classes * pixels // numbers, 1), 8),
    )
    whole = tuple(None if each is None else each.contiguous() for each in parameters)
    return Problem(tuple(logits), target, whole, setting, ignore_index or 0)


def _options(setting: Setting) -> dict[str, int]:
    """Left alone, ptxas takes 168 registers for 12 programs a multiprocessor, and spills a few; it needs 162 to 236."""
    return {"num_warps": setting.warps} if torch.version.hip else {"num_warps": setting.warps, "maxnreg": 240}


def share(problem: Problem, positions: int, maps: int, more: int, tables: int) -> Programs:
    """A program has `maps` maps and `more` rows of pixels in its scratch, and tables of `tables` bytes."""
    block = problem.setting.pixels
    pixels = -(-positions // block) * block
    tiles = -(-problem.elements // positions)
    scratch = (maps * problem.classes + more) * pixels
    label_scratch = pixels * (problem.classes if problem.setting.multi_label else 1)
    most = max(1, min(WARPS // problem.setting.warps, WORKSPACE // (scratch * problem.dtype.itemsize + tables)))
    an_image = min(-(-most // problem.batch), most, tiles)
    an_image = -(-tiles // -(-tiles // an_image))
    return Programs(positions, pixels, tiles, an_image, max(1, most // an_image), scratch, label_scratch)


def forward(
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    log_probability: bool,
) -> tuple[Tensor, ...]:
    parameters = (concat_weight, concat_bias, attention_weight, attention_bias)
    problem = describe(
        logits, target, parameters, operators, activation, domain, ignore_index, align_corners, log_probability
    )
    statistics = 5 if log_probability else 4
    batch, classes = problem.batch, problem.classes
    shape = (batch, problem.maps, classes) if per_sample else (problem.maps, classes)
    results = [target.new_zeros(shape, dtype=problem.dtype) for _ in range(statistics)]
    counts = target.new_zeros(batch, 1, classes + 2, dtype=torch.int64)
    if batch and problem.elements:
        counts = _statistics(problem, results, per_sample)
    if not log_probability:
        results.append(results[0].new_empty(0))
    sums = counts.sum(dim=1 if per_sample else (0, 1))
    return *results, *(part.clone() for part in (sums[..., :classes], sums[..., classes], sums[..., classes + 1]))


def _statistics(problem: Problem, results: Sequence[Tensor], per_sample: bool) -> Tensor:
    """Fills `results`; gives (B, programs of an image, C + 2): pixels of each class, all pixels, invalid labels."""
    setting, device = problem.setting, problem.target.device
    maps = problem.levels * (2 if setting.probabilities else 1) + 1
    programs = share(problem, min(TILE, problem.elements), maps, 0, 0)
    rows, columns = problem.batch * programs.an_image, problem.maps * problem.classes
    tables = torch.zeros(len(results), rows, columns, dtype=torch.float64, device=device)
    counts = torch.zeros(problem.batch, programs.an_image, problem.classes + 2, dtype=torch.int64, device=device)
    labels, scratch = _scratch(problem, programs)
    for first in range(0, problem.batch, programs.images):
        launch(
            statistics_kernel,
            min(programs.images, problem.batch - first) * programs.an_image,
            *problem.sources(),
            labels,
            scratch,
            tables,
            counts,
            rows * columns,
            programs.scratch,
            programs.label_scratch,
            *problem.numbers(),
            first,
            programs.an_image,
            programs.tiles,
            programs.positions,
            programs.pixels,
            problem.elements,
            problem.ignore_index,
            device=device,
            SETTING=setting,
            COMPUTE=TRITON_DTYPES[problem.dtype],
            **_options(setting),
        )
    _finish(tables.unbind(), results, programs.an_image if per_sample else rows, rows)
    return counts


def backward(
    grad_cross_entropy: Tensor | None,
    grad_intersection: Tensor | None,
    grad_probability: Tensor | None,
    grad_square: Tensor | None,
    grad_log_probability: Tensor | None,
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    parameters = (concat_weight, concat_bias, attention_weight, attention_bias)
    problem = describe(
        logits,
        target,
        parameters,
        operators,
        activation,
        domain,
        ignore_index,
        align_corners,
        grad_log_probability is not None,
    )
    given = (grad_cross_entropy, grad_intersection, grad_probability, grad_square, grad_log_probability)
    inputs = (*logits, *parameters)
    asked = [
        (torch.empty_like(t) if i < len(logits) else torch.empty_like(t, memory_format=torch.contiguous_format))
        if wanted and t is not None
        else None
        for i, (t, wanted) in enumerate(zip(inputs, needed, strict=True))
    ]
    if problem.batch and problem.elements and any(gradient is not None for gradient in asked):
        _gradients(problem, _gradient_table(problem, given, per_sample), per_sample, asked)
    else:
        asked = [None if gradient is None else gradient.zero_() for gradient in asked]
    return [logits[0].new_empty(0) if gradient is None else gradient for gradient in asked]


def _gradient_table(problem: Problem, given: Sequence[Tensor | None], per_sample: bool) -> Tensor:
    """(B or 1, maps, 5, classes as a power of two): a program reads its rows side by side."""
    batch = problem.batch if per_sample else 1
    table = problem.target.new_zeros(batch, problem.maps, 5, problem.setting.classes, dtype=problem.dtype)
    for i, gradient in enumerate(given):
        if gradient is not None:
            table[:, :, i, : problem.classes] = gradient
    return table


def _gradients(problem: Problem, table: Tensor, per_sample: bool, asked: Sequence[Tensor | None]) -> None:
    """Fills the gradients that are asked for: of the levels, then of the four parameters."""
    setting, levels, classes, device = problem.setting, problem.levels, problem.classes, problem.target.device
    dlevels, dparameters = asked[:levels], asked[levels:]
    depth, height, width = problem.full
    rows = min(max(1, TILE // width), depth * height)
    maps = levels * (3 if setting.probabilities else 2) + 1
    numbers = sum(gradient.numel() for gradient in dparameters if gradient is not None)
    programs = share(problem, rows * width, maps, levels, numbers * 8)
    widths = [level.shape[-1] for level in problem.logits]
    an_image = classes * depth * height * problem.dtype.itemsize * sum(widths)
    images = max(1, min(programs.images, problem.batch, WORKSPACE // an_image))
    labels, scratch = _scratch(problem, programs)
    tables: list[Any] = [
        None
        if gradient is None
        else torch.zeros(images * programs.an_image, gradient.numel(), dtype=torch.float64, device=device)
        for gradient in dparameters
    ]
    counts = [0 if dlevel is None else images * classes * depth * height * dlevel.shape[-1] for dlevel in dlevels]
    tables_rows = scratch.new_empty(sum(counts))
    needed = sum(1 << i for i, dlevel in enumerate(dlevels) if dlevel is not None)
    taps = tuple(_taps(level, problem) for level in problem.logits)
    constants = {"SETTING": setting, "COMPUTE": TRITON_DTYPES[problem.dtype]}
    for first in range(0, problem.batch, images):
        images_here = min(images, problem.batch - first)
        launch(
            gradient_kernel,
            images_here * programs.an_image,
            *problem.sources(),
            table,
            *tables,
            tables_rows,
            needed,
            images,
            labels,
            scratch,
            programs.scratch,
            programs.label_scratch,
            *problem.numbers(),
            taps,
            first,
            table[0].numel() if per_sample else 0,
            programs.an_image,
            programs.tiles,
            rows,
            programs.pixels,
            problem.ignore_index,
            device=device,
            **constants,
            **_options(setting),
        )
        for dlevel, rows_of_level, touching in zip(dlevels, tables_rows.split(counts), taps, strict=True):
            if dlevel is None:
                continue
            elements = images_here * dlevel[0].numel()
            launch(
                add_up_rows_kernel,
                -(-elements // ROWS_BLOCK),
                rows_of_level,
                dlevel,
                spatial_strides(dlevel),
                _sizes(dlevel, setting.spatial),
                problem.full,
                touching,
                first,
                classes,
                elements,
                device=device,
                **constants,
                BLOCK=ROWS_BLOCK,
                num_warps=2,
            )
    found = [(each, gradient) for each, gradient in zip(tables, dparameters, strict=True) if gradient is not None]
    if found:
        every = images * programs.an_image
        _finish([each for each, _ in found], [gradient for _, gradient in found], every, every)


def _finish(tables: Sequence[Tensor], results: Sequence[Tensor], rows: int, programs: int) -> None:
    """Adds up `rows` rows of each table, (programs, numbers), for each row of a result."""
    columns = tuple(math.prod(each.shape[1:]) for each in tables)
    launch(
        finish_kernel,
        programs // rows * sum(-(-each // FINISHED) for each in columns),
        tuple(tables),
        tuple(results),
        rows,
        programs,
        columns,
        device=results[0].device,
        ROWS=16,
        NUMBERS=FINISHED,
        num_warps=4,
    )


def _scratch(problem: Problem, programs: Programs) -> tuple[Tensor, Tensor]:
    """Of all programs of a launch: the labels, and the maps."""
    count = min(programs.images, problem.batch) * programs.an_image
    labels = problem.target.new_empty(count * programs.label_scratch, dtype=torch.int32)
    return labels, problem.target.new_empty(count * programs.scratch, dtype=problem.dtype)


def _taps(level: Tensor, problem: Problem) -> tuple[int, ...]:
    """Along each axis, how many full-size positions may touch one of the level: twice the ratio, and the rounding."""
    sizes = zip(_sizes(level, problem.setting.spatial), problem.full, strict=True)
    if problem.setting.align_corners:
        return tuple(min(full, math.ceil(2 * (full - 1) / max(size - 1, 1)) + 4) for size, full in sizes)
    return tuple(min(full, math.ceil(2 * full / size) + 4) for size, full in sizes)


def _sizes(tensor: Tensor, spatial: int) -> tuple[int, int, int]:
    """(depth, height, width); an image has depth 1."""
    depth, height, width = (1, *tensor.shape[-2:]) if spatial == 2 else tensor.shape[-3:]
    return depth, height, width
