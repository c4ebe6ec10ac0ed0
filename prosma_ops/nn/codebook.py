"""VectorQuantizer: replaces every token by the nearest code, and learns the codes.

quantized, index = nearest_code(tokens, codebook)
loss = commitment * mean |tokens - stop(quantized)|^2  [+ mean |quantized - stop(tokens)|^2 with update="gradient"]
result = quantized, with the gradient of the tokens: the straight-through estimator

After "Neural Discrete Representation Learning" (arXiv 1711.00937), with its running averages as the other update:
count = decay * count + (1 - decay) * tokens of the code;  sum = decay * sum + (1 - decay) * their sum
codebook = sum / count, the counts smoothed so that none is zero
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from ..ops import checks, code_statistics, nearest_code
from ..ops.codebook import METRICS
from .layers import number, positive_integer

UPDATES = ("gradient", "ema")
STARTS = ("uniform", "kmeans")
# Laplace's smoothing of the running counts, as everybody has it.
SMOOTHING = 1e-5
KMEANS_ROUNDS = 10


class VectorQuantizer(nn.Module):
    """A codebook of `codes` vectors of `dim` numbers; of tokens (..., dim) it makes (quantized, loss, index).

    `quantized` has exactly the values of the chosen codes and passes its gradient to the tokens; `loss` is what to add
    to the model's own; `index` (...) is int64. Half-precision tokens may stand beside the float32 codebook: keep the
    module itself in float32, as autocast does. A token that holds NaN or infinity gets index 0, counts nowhere, and is
    reported by `prosma_ops.check_errors()`.

    Under torch.distributed the counts and sums of all processes are added before they are used, and random tokens are
    drawn from all of them by the first: the codebooks stay equal, and are those of one process with the whole batch.
    torch.compile takes the module whole, but for the k-means start and the exchange between processes, which break the
    graph.

    Arguments:
        codes: how many vectors the codebook has.
        dim: how many numbers each has.
        commitment: weight of the loss that draws the tokens to their codes, at least 0.
        update: "gradient": the codebook is a parameter, learned by the second term of the loss; "ema": a buffer, the
            running mean of the tokens that chose each code.
        decay: of the running counts and sums a training step, from 0 to 1.
        metric: "euclidean" or "cosine". Under both the codes approximate the tokens themselves, lengths included.
        restart_dead_codes: 0.0 for never, else the running count below which a code is replaced, after a training
            step, by a random token of the batch. Its running count then starts anew at twice that, which at decay 0.99
            gives it 69 steps to be chosen.
        init: "uniform": from -1 / codes to 1 / codes; "kmeans": the same until the first training batch, of which it
            then takes the means of ten rounds of k-means. The random numbers are those of `torch.manual_seed`.
    """

    codebook: Tensor
    running_count: Tensor | None
    running_sum: Tensor | None
    started: Tensor | None

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        commitment: float = 0.25,
        update: str = "gradient",
        decay: float = 0.99,
        metric: str = "euclidean",
        restart_dead_codes: float = 0.0,
        init: str = "uniform",
    ) -> None:
        super().__init__()
        self.codes = positive_integer("codes", codes)
        self.dim = positive_integer("dim", dim)
        self.commitment = number("commitment", commitment)
        checks.choice("update", update, UPDATES)
        self.update = update
        self.decay = number("decay", decay, largest=1.0)
        checks.choice("metric", metric, METRICS)
        self.metric = metric
        self.restart_dead_codes = number("restart_dead_codes", restart_dead_codes)
        checks.choice("init", init, STARTS)
        self.init = init

        numbers = torch.empty(codes, dim)
        if update == "ema":
            self.register_buffer("codebook", numbers)
        else:
            self.register_parameter("codebook", nn.Parameter(numbers))
        counted = update == "ema" or self.restart_dead_codes > 0
        self.register_buffer("running_count", torch.empty(codes) if counted else None)
        self.register_buffer("running_sum", torch.empty(codes, dim) if update == "ema" else None)
        self.register_buffer("started", torch.tensor(False) if init == "kmeans" else None)
        self._last = _LastForward()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The codebook and its running averages as at the start; k-means is then still to come."""
        nn.init.uniform_(self.codebook, -1 / self.codes, 1 / self.codes)
        with torch.no_grad():
            if self.running_count is not None:
                self.running_count.fill_(self._first_count)
            if self.running_sum is not None:
                self.running_sum.copy_(self.codebook * self._first_count)
            if self.started is not None:
                self.started.fill_(False)
        self._waiting = self.started is not None

    @property
    def _first_count(self) -> float:
        """The running count that a new code has: so much that it is not dead at once."""
        return max(1.0, 2 * self.restart_dead_codes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., dim) -> quantized (..., dim), loss (), index (...)."""
        tokens = checks.plain("tokens", tokens)
        if tokens.dim() < 1 or tokens.shape[-1] != self.dim:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must be (..., {self.dim})")
        if self._waiting and self.training:
            self._start(tokens.detach())
        quantized, index = nearest_code(tokens, self.codebook, metric=self.metric)
        loss = self.commitment * _mean_square(tokens, quantized.detach())
        if self.update == "gradient":
            loss = loss + _mean_square(quantized, tokens.detach())
        if not torch.compiler.is_exporting():
            self._last.index, self._last.count = index, None
            if self.training and self.running_count is not None:
                self._learn(tokens.detach(), index)
        # tokens - stop(tokens) is exactly zero, so the value is the code's own, and the gradient goes to the tokens.
        return quantized.detach() + (tokens - tokens.detach()), loss, index

    def perplexity(self) -> Tensor:
        """exp of the entropy of the codes' shares in the last forward: 1 if one code has all tokens, at most `codes`.

        Where a training step counts for its running averages it is that of all processes, else that of this one.
        """
        index, count = self._last.index, self._last.count
        if index is None:
            raise RuntimeError("perplexity() speaks of the last forward, and there was none yet: call the module first")
        if count is None:
            count = torch.zeros(self.codes, dtype=torch.int64, device=index.device)
            count.index_add_(0, index.reshape(-1), torch.ones_like(index).reshape(-1))
        share = count.double() / count.sum().clamp(min=1)
        entropy: Tensor = torch.special.entr(share).sum()
        return entropy.exp().float()

    def extra_repr(self) -> str:
        return (
            f"{self.codes}, {self.dim}, commitment={self.commitment}, update={self.update!r}, decay={self.decay}, "
            f"metric={self.metric!r}, restart_dead_codes={self.restart_dead_codes}, init={self.init!r}"
        )

    @torch.no_grad()
    def _learn(self, tokens: Tensor, index: Tensor) -> None:
        """The running averages with this batch in them, the codebook that follows from them, and new dead codes."""
        assert self.running_count is not None
        count, total = self._statistics(tokens, index)
        self._last.count = count
        self.running_count.lerp_(count.to(self.running_count.dtype), 1 - self.decay)
        if self.running_sum is not None:
            self.running_sum.lerp_(total.to(self.running_sum.dtype), 1 - self.decay)
            everything = self.running_count.sum()
            smoothed = (self.running_count + SMOOTHING) / (everything + self.codes * SMOOTHING) * everything
            self.codebook.copy_(self.running_sum / smoothed.unsqueeze(1))
        if self.restart_dead_codes > 0:
            self._restart(tokens.reshape(-1, self.dim), self.running_count < self.restart_dead_codes)

    def _statistics(self, tokens: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Over all processes. A token that is not finite would spoil its code for good, and counts nowhere."""
        index = index.where(tokens.sum(dim=-1, dtype=_wide(tokens)).isfinite(), -1)
        count, total = code_statistics(tokens, index, self.codes)
        if _processes() > 1:
            _add_up(count)
            _add_up(total)
        return count, total

    def _restart(self, tokens: Tensor, dead: Tensor) -> None:
        drawn, found = _random_tokens(tokens, self.codes)
        dead = dead & found
        rows = dead.unsqueeze(1)
        drawn = drawn.to(self.codebook.dtype)
        self.codebook.copy_(torch.where(rows, drawn, self.codebook))
        if self.running_count is not None:
            self.running_count.masked_fill_(dead, self._first_count)
        if self.running_sum is not None:
            self.running_sum.copy_(torch.where(rows, drawn * self._first_count, self.running_sum))

    @torch.no_grad()
    def _start(self, tokens: Tensor) -> None:
        """K-means over the first training batch, from random tokens; a mean without tokens stays where it is."""
        flat = tokens.reshape(-1, self.dim).to(_wide(tokens))
        centres, found = _random_tokens(flat, self.codes, distinct=True)
        if not found.any():
            return  # no process has a finite token yet
        centres = torch.where(found.unsqueeze(1), centres, self.codebook.to(centres.dtype))
        count = centres.new_zeros(self.codes, dtype=torch.int64)
        for _ in range(KMEANS_ROUNDS):
            count, total = self._statistics(flat, nearest_code(flat, centres, metric=self.metric).index)
            filled = (count > 0).unsqueeze(1)
            centres = torch.where(filled, total / count.clamp(min=1).unsqueeze(1), centres)
        self.codebook.copy_(centres)
        weight = count.to(self.codebook.dtype).clamp(min=self._first_count)
        if self.running_count is not None:
            self.running_count.copy_(weight)
        if self.running_sum is not None:
            self.running_sum.copy_(self.codebook * weight.unsqueeze(1))
        if self.started is not None:
            self.started.fill_(True)
        self._waiting = False

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        self._waiting = self.started is not None and not bool(self.started)


class _LastForward:
    """Holds what `perplexity` speaks of. It is no part of what is saved or copied."""

    index: Tensor | None = None
    count: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _wide(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def _mean_square(one: Tensor, other: Tensor) -> Tensor:
    """In float32 at least; 0 for an empty batch."""
    difference = one.to(_wide(one)) - other.to(_wide(other))
    return difference.square().sum() / max(difference.numel(), 1)


def _processes() -> int:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size()


def _add_up(values: Tensor) -> None:
    torch.distributed.all_reduce(values)


def _of_all_processes(own: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many tokens the processes before this one have, and how many all have together."""
    counts = torch.zeros(_processes(), dtype=torch.int64, device=device)
    rank = torch.distributed.get_rank()
    counts[rank] = own
    _add_up(counts)
    return counts[:rank].sum(), counts.sum()


def _as_the_first_has_it(values: Tensor) -> None:
    torch.distributed.broadcast(values, src=0)


def _random_tokens(tokens: Tensor, codes: int, distinct: bool = False) -> tuple[Tensor, Tensor]:
    """(codes, D) tokens of all processes, numbered one process after the other, and which of them are there and finite.

    `distinct` takes none twice while there are enough; it costs a permutation of all.
    """
    own, device = tokens.shape[0], tokens.device
    shared = _processes() > 1
    if shared:
        before, everything = _of_all_processes(own, device)
    else:
        before, everything = torch.zeros((), dtype=torch.int64, device=device), torch.full((), own, device=device)
    if distinct and int(everything) >= codes:
        place = torch.randperm(int(everything), device=device)[:codes]
    else:
        place = (torch.rand(codes, dtype=torch.float64, device=device) * everything).long()
    if shared:
        _as_the_first_has_it(place)
    local = place - before
    if own == 0:
        drawn = tokens.new_zeros(codes, tokens.shape[1] + 1, dtype=_wide(tokens))
    else:
        chosen = tokens[local.clamp(0, own - 1)].to(_wide(tokens))
        good = (local >= 0) & (local < own) & chosen.isfinite().all(dim=1)
        drawn = torch.where(good.unsqueeze(1), torch.cat([chosen, torch.ones_like(chosen[:, :1])], dim=1), 0.0)
    if shared:
        _add_up(drawn)
    return drawn[:, :-1], drawn[:, -1] > 0
