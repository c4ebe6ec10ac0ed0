"""fuse: modules of other packages in a model compute what they computed, by the fused operators.

A module that has a fused equal becomes one in place: its class changes to a subclass whose forward is fused, and all
that it holds, parameters, buffers, hooks and settings, stays the same objects under the same names. So weights are
shared, the keys of state_dict are unchanged, whoever else refers to the module finds it fused, and `unfuse` changes the
class back.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Rule:
    """The fused equal of one class: `reason(module)` says why a module cannot become one, or is empty.

    `note` says what is different all the same; `parts` are submodules, by their paths, that change along with it, each
    with its class and the fused one.
    """

    fused: type[nn.Module]
    reason: Callable[[Any], str]
    note: Callable[[Any], str] = lambda _: ""
    parts: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = field(default_factory=dict)


@dataclass
class FusionReport:
    """What `fuse` did: paths of modules, and for each what it is now and anything to know, or why it stays."""

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("fused", path, text) for path, text in self.replaced.items()]
        rows += [("kept", path, text) for path, text in self.kept.items()]
        return "\n".join(f"{done:<6}{path or '(the model)'}: {text}" for done, path, text in rows) or "nothing to fuse"


#: Where the rules for a package stand; they are read only if the package is there already.
PACKAGES = {"monai": ".monai", "vector_quantize_pytorch": ".vector_quantize"}


def fuse(model: nn.Module) -> FusionReport:
    """Let modules of other packages in `model`, or `model` itself, compute by the operators of prosma_ops, in place.

    MONAI's `DiceLoss`, `DiceCELoss`, `DeepSupervisionLoss` and `EMAQuantizer`, and vector-quantize-pytorch's
    `VectorQuantize` are known, wherever their settings mean the same in both packages. Subclasses of them are left
    alone: they may compute something else. To fuse a loss that is not part of the model, call `fuse(loss)` too.

    >>> report = fuse(network)
    >>> print(report)
    fused bottleneck.quantizer: EMAQuantizer
    """
    rules, report = _rules(), FusionReport()
    done: set[nn.Module] = set()
    for path, module in list(model.named_modules()):
        rule = rules.get(type(module))
        if rule is None or module in done:
            continue
        reason = rule.reason(module)
        if reason:
            report.kept[path] = f"{type(module).__name__}: {reason}"
            continue
        note = rule.note(module)
        report.replaced[path] = f"{type(module).__name__}{': ' + note if note else ''}"
        module.__class__ = rule.fused
        for name, (_, fused) in rule.parts.items():
            part = module.get_submodule(name)
            done.add(part)
            part.__class__ = fused
    return report


def unfuse(model: nn.Module) -> list[str]:
    """Undo `fuse`: every fused module in `model` is of its own class again. Returns their paths."""
    own: dict[type[nn.Module], type[nn.Module]] = {}
    for known, rule in _rules().items():
        own |= {rule.fused: known} | {fused: plain for plain, fused in rule.parts.values()}
    found = [path for path, module in model.named_modules() if type(module) in own]
    for path in found:
        module = model.get_submodule(path)
        module.__class__ = own[type(module)]
    return found


def _rules() -> dict[type[nn.Module], Rule]:
    return dict(_known())


def _known() -> Iterator[tuple[type[nn.Module], Rule]]:
    for package, home in PACKAGES.items():
        if package in sys.modules:
            rules: Mapping[type[nn.Module], Rule] = importlib.import_module(home, __name__).RULES
            yield from rules.items()
