"""The one `torch.library` namespace, and what every operator's registration has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import backends

LIBRARY = torch.library.Library("prosma_ops", "DEF")


class Operator:
    """A registered operator, called with its schema's arguments: a call takes the shortest way that does all it must.

    The dispatcher's way costs two Python frames (7 us, where softshrink takes 1), and with a gradient and lists of
    tensors torch.library's handling of nested arguments. Where nobody watches, plain tensors without a gradient go
    to the implementation at once, and those with one through `_Recorded`.
    """

    def __init__(
        self,
        name: str,
        implementation: Callable[..., Any],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
    ):
        self.registered = getattr(torch.ops.prosma_ops, name).default
        self.implementation, self.setup_context, self.backward = implementation, setup_context, backward
        # The formula of a result that is a list takes its gradients as a list.
        self.is_recorded_here = all(result.type.kind() == "TensorType" for result in self.registered._schema.returns)

    def __call__(self, *arguments: Any) -> Any:
        if unwatched():
            tensors, layout = _laid_out(arguments)
            if all(map(is_plain, tensors)):
                if not is_recorded(tensors):
                    return self.implementation(*arguments)
                if self.is_recorded_here:
                    return _Recorded.apply(self, arguments, layout, *tensors)  # type: ignore[no-untyped-call]
        return self.registered(*arguments)


# Of each argument: whether it is a list, and how many tensors it has.
Layout = Sequence[tuple[bool, int]]


def _laid_out(arguments: Sequence[Any]) -> tuple[list[Tensor], Layout]:
    tensors: list[Tensor] = []
    layout = []
    for argument in arguments:
        before, nested = len(tensors), isinstance(argument, (list, tuple))
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif nested and argument and isinstance(argument[0], Tensor):
            tensors += argument
        layout.append((nested, len(tensors) - before))
    return tensors, layout


class _Recorded(torch.autograd.Function):  # noqa: TID251  (the one way beside the dispatcher's)
    """An operator's implementation with its gradient, by the same two functions that torch.library is given."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, arguments: tuple[Any, ...], layout: Layout, *tensors: Tensor) -> Any:
        results = operator.implementation(*arguments)
        ctx.operator, ctx.layout = operator, layout
        operator.setup_context(ctx, arguments, results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        flat_needs = ctx.needs_input_grad
        ctx.needs_input_grad = _nested(flat_needs[3:], ctx.layout)
        try:
            found = ctx.operator.backward(ctx, *grads)
        finally:
            ctx.needs_input_grad = flat_needs  # the next backward of a graph that is kept reads it again
        found = found if isinstance(found, tuple) else (found,)
        flat: list[Tensor | None] = []
        for (nested, count), gradient in zip(ctx.layout, found, strict=True):
            flat += [] if not count else gradient if nested else [gradient]
        return None, None, None, *flat


def _nested(flat: Sequence[bool], layout: Layout) -> tuple[bool | list[bool], ...]:
    """What each argument needs: a list where it is a list of tensors."""
    values = iter(flat)
    own = [[next(values) for _ in range(count)] for _, count in layout]
    return tuple(needs if nested and needs else any(needs) for (nested, _), needs in zip(layout, own, strict=True))


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Operator:
    """Register one operator. A schema has no default values: an optional tensor left out breaks the backward.

    The implementation is chosen inside `implementation`, on real tensors, so that a compiled graph holds one
    operator whichever kernel runs.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    name = schema[: schema.index("(")]
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"prosma_ops::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"prosma_ops::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    return Operator(name, implementation, setup_context, backward)


def unwatched() -> bool:
    """Whether this code runs as it stands: outside of every mode, transform, trace and profile."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0:
        return False
    return not torch.autograd.profiler._is_profiler_enabled and torch._C._get_tracing_state() is None


def is_plain(tensor: Tensor) -> bool:
    """Subclasses have a say in what is done; what is lazily negated or has no memory is the dispatcher's to resolve."""
    is_own = type(tensor) is Tensor or type(tensor) is Parameter
    return is_own and not tensor.is_neg() and not tensor._is_zerotensor()


def is_recorded(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def laid_out_as(like: Tensor, values: Tensor) -> Tensor:
    """`values` in the memory format that `empty_like` gives, which is what the shape rule promises."""
    out = torch.empty_like(like)
    return values if values.stride() == out.stride() else out.copy_(values)


def empty_gradients(inputs: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor]:
    """What the backward fills: like the input, or of no size where not asked for; schemas have no `Tensor?` results."""
    leader = backends.leader(inputs)
    return [
        torch.empty_like(tensor) if wanted and tensor is not None else leader.new_empty(0)
        for tensor, wanted in zip(inputs, needed, strict=True)
    ]


def derivative_of(
    formula: Callable[..., Sequence[Tensor | None]],
    tensors: Sequence[Tensor | None],
    arguments: Sequence[Any],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of `formula(*tensors, *arguments)`, which is plain PyTorch, for every floating tensor in `tensors`.

    This is how a backward operator gets a second derivative that is right: through the reference. Views keep the
    tensors' own graph, so a third derivative (create_graph) is right as well.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [
            None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors
        ]
        results = formula(*aliases, *arguments)
        pairs = [
            (result, grad)
            for result, grad in zip(results, grads, strict=True)
            if result is not None and grad is not None and result.requires_grad
        ]
        inputs = [alias for alias in aliases if alias is not None]
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                inputs,
                [grad for _, grad in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
            if pairs
            else [None] * len(inputs)
        )
    return [None if alias is None else next(found) for alias in aliases]
