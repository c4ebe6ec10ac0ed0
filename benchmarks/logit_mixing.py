"""mixed_logit_statistics in the losses that are made of it: what they are measured on, and against what.

All works are forward + backward with the gradients of the logits and of the loss's own parameters. The least bytes are
those of the logits as they come (read in the forward and in the backward, their gradients written) and of the labels,
read twice. The exponentials are what the formulas need after what algebra saves, in the forward and again in the
backward: at four levels 37 C + 28 a pixel (C for each of the 4 maps, 11 products and 22 mixtures with weights; the
softmax of a sum is the normalised product of what the levels already have, and 28 are those of attention), and C a
pixel and map without operators.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prosma_ops.nn import DeepSupervisionLoss, DiceCELoss, MixedLogitLoss
from prosma_ops.testing import Problem, numbers
from prosma_ops.testing.logit_mixing import PARAMETERS, Shape, mixed_maps, one_hot_of, problem

from . import harness
from .network import SmallUNet
from .targets import OURS, Target
from .work import Contestant, Work

EAGER, MONAI, LAST_MAP = "eager", "MONAI", "with the last map only"
STRIDES = (32, 16, 8, 4)  # of the four levels: 7, 14, 28 and 56 of 224
IMAGE, VOLUME = (6, 9, 224, 224), (2, 14, 96, 96, 96)
OPERATORS = ("add", "multiply", "concat", "attention")


# LoMix.


def mixed_loss(classes: int) -> MixedLogitLoss:
    torch.manual_seed(0)
    return MixedLogitLoss(len(STRIDES), classes, tied_attention=False)


def ours_of_lomix(target: Tensor, **tensors: Tensor) -> Tensor:
    levels = [tensors.pop(f"level{number}") for number in range(len(STRIDES))]
    loss = _loss_of(levels[0].shape[1])
    result: Tensor = functional_call(
        loss, {name: tensors.get(name) for name in dict(loss.named_parameters())}, (levels, target)
    )
    return result


_losses: dict[int, MixedLogitLoss] = {}


def _loss_of(classes: int) -> MixedLogitLoss:
    """Made once, as a user does; its parameters are inputs of the work."""
    if classes not in _losses:
        _losses[classes] = mixed_loss(classes)
    return _losses[classes]


def eager_lomix(target: Tensor, alpha: Tensor, **tensors: Tensor) -> Tensor:
    """Each level up-sampled once, one softmax a map for cross-entropy and Dice, one one-hot target for all."""
    low = [tensors.pop(f"level{number}") for number in range(len(STRIDES))]
    levels = [F.interpolate(level, size=target.shape[1:], mode="bilinear") for level in low]
    maps = [*levels, *mixed_maps(levels, OPERATORS, *(tensors[name] for name in PARAMETERS))]
    one_hot, _ = one_hot_of(target, low[0], None)
    actual, axes = one_hot.sum(dim=(0, 2, 3)), (0, 2, 3)
    losses = []
    for values in maps:
        log_p = values.log_softmax(dim=1)
        p = log_p.exp()
        dice = 1 - (2 * (p * one_hot).sum(dim=axes) + 1e-5) / ((p * p).sum(dim=axes) + actual + 1e-5)
        losses.append(0.3 * F.nll_loss(log_p, target) + 0.7 * dice.mean())
    return (F.softplus(alpha) * torch.stack(losses)).sum()


def draw(size: tuple[int, ...], strides: Sequence[int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Levels of the size over each stride, and class labels, as the cases have them."""
    levels = tuple(tuple(max(1, extent // stride) for extent in size[2:]) for stride in strides)
    inputs = problem(Shape("benchmark", size, levels, ()), "contiguous", dtype, torch.device("cpu")).inputs
    return {name: tensor for name, tensor in inputs.items() if tensor is not None}


def problem_of(
    inputs: dict[str, Tensor],
    device: torch.device,
    function: Callable[..., Any],
    eager: Callable[..., Any],
    **more: Any,
) -> Problem:
    """A loss: its definition is the same composition, on the reference backend in float64."""
    placed = {name: tensor.detach().to(device) for name, tensor in inputs.items()}
    return Problem(
        inputs=placed,
        settings={},
        function=function,
        definition=function,
        eager=eager,
        leader=next(iter(inputs)),
        grads=(torch.ones((), device=device),),
        constant=frozenset({"target", "image"}),
        **more,
    )


def build_lomix(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    parameters = dict(mixed_loss(size[1]).named_parameters())
    return problem_of(draw(size, STRIDES, dtype) | parameters, device, ours_of_lomix, eager_lomix)


# Deep supervision, and Dice with cross-entropy of one map, against MONAI.


def ours_of_supervision(target: Tensor, **levels: Tensor) -> Tensor:
    loss = DeepSupervisionLoss(DICE_CE, resize="logits", order="coarse_to_fine")
    result: Tensor = loss(list(levels.values()), target.unsqueeze(1))
    return result


def monai_supervision(target: Tensor, **levels: Tensor) -> Tensor:
    from monai.losses import DeepSupervisionLoss as OfMonai
    from monai.losses import DiceCELoss as DiceCEOfMonai

    enlarged = [F.interpolate(level, size=target.shape[1:], mode="bilinear") for level in levels.values()]
    result: Tensor = OfMonai(DiceCEOfMonai(**DICE_CE_OPTIONS))(enlarged[::-1], target.unsqueeze(1))
    return result


def ours_of_dice_ce(target: Tensor, level0: Tensor) -> Tensor:
    result: Tensor = DICE_CE(level0, target.unsqueeze(1))
    return result


def monai_dice_ce(target: Tensor, level0: Tensor) -> Tensor:
    from monai.losses import DiceCELoss as DiceCEOfMonai

    result: Tensor = DiceCEOfMonai(**DICE_CE_OPTIONS)(level0, target.unsqueeze(1))
    return result


DICE_CE_OPTIONS: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
DICE_CE = DiceCELoss(**DICE_CE_OPTIONS)


def build_supervision(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    return problem_of(draw(size, STRIDES, dtype), device, ours_of_supervision, monai_supervision)


def build_dice_ce(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    return problem_of(draw(size, (1,), dtype), device, ours_of_dice_ce, monai_dice_ce)


# A whole training step. The network's parameters are inputs by name, so that their gradients are taken too.

_networks: dict[int, nn.Module] = {}


def network(classes: int) -> nn.Module:
    if classes not in _networks:
        torch.manual_seed(0)
        _networks[classes] = SmallUNet(classes)
    return _networks[classes]


def step(loss: Callable[..., Tensor], image: Tensor, target: Tensor, **parameters: Tensor) -> Tensor:
    """The loss of the network's maps; `loss` takes them as level0, level1, ... beside its own parameters."""
    of_loss = {name: values for name, values in parameters.items() if not name.startswith("network.")}
    of_network = {n.removeprefix("network."): v for n, v in parameters.items() if n.startswith("network.")}
    classes = of_network["heads.0.bias"].shape[0]
    maps = functional_call(network(classes), of_network, (image,))
    return loss(target=target, **{f"level{number}": each for number, each in enumerate(maps)}, **of_loss)


def loss_of_last_map(target: Tensor, level3: Tensor, **others: Tensor) -> Tensor:
    result: Tensor = MixedLogitLoss(1, level3.shape[1], operators=(), weights="fixed")(level3, target)
    return result


def step_with_last_map(**inputs: Tensor) -> Sequence[Tensor | None]:
    """With its backward: a yardstick computes something else, so the harness calls it and does no more."""
    loss = step(loss_of_last_map, **inputs)
    return torch.autograd.grad(loss, [t for t in inputs.values() if t.requires_grad], allow_unused=True)


def build_step(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    drawn = draw(size, STRIDES, dtype)
    image = numbers.normal((size[0], 1, *size[2:]), numbers.generator("image", size)).to(dtype)
    parameters = {f"network.{name}": values for name, values in network(size[1]).named_parameters()}
    parameters |= dict(mixed_loss(size[1]).named_parameters())
    inputs = {"image": image, "target": drawn["target"], **parameters}
    return problem_of(inputs, device, partial(step, ours_of_lomix), partial(step, eager_lomix))


# The works.


def costs(size: tuple[int, ...], strides: Sequence[int], mixed: bool, dtype: torch.dtype) -> dict[str, Any]:
    """What the floors count."""
    batch, classes, *spatial = size
    pixels = batch * math.prod(spatial)
    logits = sum(batch * classes * math.prod(extent // stride for extent in spatial) for stride in strides)
    of_a_pixel = 37 * classes + 28 if mixed else len(strides) * classes
    return {
        "moved_bytes": 3 * logits * dtype.itemsize + 2 * pixels * torch.int64.itemsize,
        "exponentials": 2 * pixels * of_a_pixel,
    }


def against(name: str, function: Callable[..., Any]) -> list[Contestant]:
    """Ours first, as the name is that of the rival; MONAI where it is installed."""
    return [Contestant(name, function)] if name != MONAI or importlib.util.find_spec("monai") else []


def lomix(size: tuple[int, ...] = IMAGE, **options: Any) -> Work:
    return Work(
        name=f"LoMix, 48 maps, {label(size)} from 7, 14, 28, 56",
        build=build_lomix,
        size=size,
        contestants=[Contestant(OURS, ours_of_lomix), *against(EAGER, eager_lomix)],
        training=True,
        targets=[Target("speedup", EAGER, at_least=12), Target("memory", OURS, at_most=100)],
        field_bytes=10**6,
        memory_unit="MB",
        **costs(size, STRIDES, True, torch.float32),
        **options,
    )


def supervision(size: tuple[int, ...] = IMAGE, **options: Any) -> Work:
    return Work(
        name=f"deep supervision, {label(size)} from 7, 14, 28, 56",
        build=build_supervision,
        size=size,
        contestants=[Contestant(OURS, ours_of_supervision), *against(MONAI, monai_supervision)],
        training=True,
        targets=[Target("speedup", MONAI, at_least=5)],
        **costs(size, STRIDES, False, torch.float32),
        **options,
    )


def dice_ce(size: tuple[int, ...], **options: Any) -> Work:
    """Its extra memory is counted in gradients of the logits: that and some scratch is all that is allowed."""
    return Work(
        name=f"Dice + cross-entropy, one map, {label(size)}",
        build=build_dice_ce,
        size=size,
        contestants=[Contestant(OURS, ours_of_dice_ce), *against(MONAI, monai_dice_ce)],
        training=True,
        targets=[Target("speedup", MONAI, at_least=4), Target("memory", OURS, at_most=1.05)],
        field_bytes=math.prod(size) * torch.float32.itemsize,
        memory_unit="gradients of the logits",
        **costs(size, (1,), False, torch.float32),
        **options,
    )


def training_step(size: tuple[int, ...] = IMAGE, **options: Any) -> Work:
    """Without floors, which the convolutions set."""
    return Work(
        name=f"training step of a small U-Net with LoMix, {label(size)}",
        build=build_step,
        size=size,
        contestants=[
            Contestant(OURS, partial(step, ours_of_lomix)),
            Contestant(EAGER, partial(step, eager_lomix)),
            Contestant(LAST_MAP, step_with_last_map, rival=False),
        ],
        training=True,
        targets=[Target("slowdown", LAST_MAP, at_most=1.25)],
        **options,
    )


def label(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}x{size[2]}^{len(size) - 2}"


def works(device: str) -> list[Work]:
    """The targets are for the CPU, float32, all threads, raised allocator thresholds."""
    images = [lomix(), supervision(), dice_ce(IMAGE), training_step(every_setting=False)]
    volume = dice_ce(VOLUME, short=False, every_setting=False)
    if device == "cuda":
        return [*images, volume, lomix((24, *IMAGE[1:])), dice_ce((4, 14, 128, 128, 128))]
    return [*images, volume]


def test_speed(benchmark: Any, work: Work, setting: harness.Setting, results: harness.Results) -> None:
    results.race(benchmark, work, setting)
