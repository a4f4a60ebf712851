"""``speculative``: tokens are drafted and verified together (Leviathan et al., arXiv 2211.17192).

A verify step works on `tokens` + 1 rows per sequence, reads each cache once, and costs the drafting on top:

    ``draft``  `tokens` decode steps of the draft model, on the same GPUs with the same tensor parallelism
    ``mtp``    `tokens` passes of one layer like the model's last, and its output head (DeepSeek-V3, arXiv 2412.19437)
    ``ngram``  a look-up on the host: `host_ms` per step (prompt look-up)

With ``amortise`` (the default) a step costs its share per token, time / expected tokens, so that an engine that takes
one token a step has the right rate; it hands them out in bursts afterwards (`draw_bursts`). Without, a step is a whole
verify step, for an engine that takes `draw_tokens` of it. Prompts are prefilled by target and draft alike.
NOTE: the draft's cache is read like the target's; where their windows differ, as if both had the target's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from plimsoll.catalog.counting import attention_layers, kv_bytes_per_token, num_params, weight_bytes
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.core.step import StepModel
from plimsoll.perf.build import DescribedStepModel, build_step_model
from plimsoll.perf.compositions._acceptance import draw_tokens, expected_tokens, parse_acceptance
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.compositions._wrapped import Args, Composed
from plimsoll.perf.overheads import NO_OVERHEADS
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.tabulated import UNBOUNDED, Line

SUMMARY = "drafted tokens verified in one step: draft model, n-gram or multi-token prediction (arXiv 2211.17192)"
OPTIONS = MappingProxyType(
    {
        "method": Option(default="ngram", meaning="draft, ngram or mtp"),
        "draft": Option(default="", meaning="catalogue name of the draft model, for method=draft"),
        "tokens": Option(default=3, meaning="tokens drafted per step"),
        "acceptance": Option(default="0.7", meaning="probability by position, given those before: 0.7 or 0.8/0.7/0.6"),
        "host_ms": Option(default=0.0, meaning="host time of drafting per step"),
        "amortise": Option(default=True, meaning="cost per token instead of per verify step"),
    }
)
METHODS = ("draft", "ngram", "mtp")


class Speculative(Composed):
    """See the module's text."""

    def __init__(
        self,
        inner: DescribedStepModel,
        options: Options,
        acceptance: tuple[float, ...],
        draft: StepModel | None,
        draft_reads: float,
    ) -> None:
        self.same_decodes = False  # each is verified with what was drafted for it
        super().__init__("speculative", inner, options, source=Source.ASSUMED)
        self._acceptance = acceptance
        self._drafted = len(acceptance)
        self._draft = draft
        self._draft_reads = draft_reads
        self._host_s = float(options["host_ms"]) / 1e3
        self._per_step = expected_tokens(acceptance) if options["amortise"] else 1.0
        self._own_rows = sum(weight for weight, window in inner.attention_layers if window is None)

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Probability of each drafted position, given those before it."""
        return self._acceptance

    @property
    def verified(self) -> tuple[int, float]:
        """Rows of a verified decode, and the tokens over which its seconds are shared."""
        rows, tokens = super().verified
        return rows * (self._drafted + 1), tokens * self._per_step

    @property
    def expected_tokens_per_step(self) -> float:
        """Mean tokens that a verify step yields to each sequence."""
        return expected_tokens(self._acceptance)

    @property
    def draw_bursts(self) -> Callable[[int, np.random.Generator], npt.NDArray[np.int64]] | None:
        """What an engine that takes one token a step draws bursts from; None where a step is a whole verify step."""
        return self.draw_tokens if self.options["amortise"] else None

    def draw_tokens(self, num_steps: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Tokens of each of `num_steps` verify steps of one sequence."""
        return draw_tokens(self._acceptance, num_steps, rng)

    def _drafting(self, num_decode: int, read: int) -> Line:
        """Seconds of drafting as a line in the target's read tokens."""
        if self._draft is None:
            return self._host_s, 0.0, UNBOUNDED
        line = self._draft.decode_line(num_decode, int(read * self._draft_reads))
        below = UNBOUNDED if line[2] >= UNBOUNDED else max(read + 1, int(line[2] / self._draft_reads))
        return self._host_s + self._drafted * line[0], self._drafted * line[1] * self._draft_reads, below

    def _verify(self, num_decode: int, read: int) -> Line:
        """The whole verify step; its rows see the tokens drafted before them as well."""
        ahead = num_decode * self._drafted * self._own_rows
        base, slope, below = self.inner.decode_line(num_decode * (self._drafted + 1), read + ahead)
        return base + slope * ahead, slope, below if below >= UNBOUNDED else max(read + 1, below - ahead)

    def _next_piece(self, num_decode: int, begin: int) -> Line:
        if not num_decode:
            return self.inner.decode_line(0, begin)
        verify, drafting = self._verify(num_decode, begin), self._drafting(num_decode, begin)
        below = min(verify[2], drafting[2])
        return (verify[0] + drafting[0]) / self._per_step, (verify[1] + drafting[1]) / self._per_step, below

    def _step_s(self, args: Args) -> float:
        tokens, chunks, pairs, context, done, decodes, read = args
        prompts = self.inner.step_s(tokens, chunks, pairs, context, done, 0, 0)
        if self._draft is not None:
            prompts += self._draft.step_s(tokens, chunks, *self._drafted_prompt(pairs, context), done, 0, 0)
        if not decodes:
            return prompts
        ahead = decodes * self._drafted
        rows, reads = decodes + ahead, read + ahead * self._own_rows
        both = self.inner.step_s(tokens, chunks, pairs, context, done, rows, reads)
        both -= self.inner.step_s(tokens, chunks, pairs, context, done, 0, 0)
        drafting = self._drafting(decodes, read)
        return prompts + (both + drafting[0] + drafting[1] * read) / self._per_step

    def _drafted_prompt(self, pairs: int, context: int) -> tuple[int, int]:
        return int(pairs * self._draft_reads), int(context * self._draft_reads)


def _draft_request(request: StepModelRequest, options: Options) -> StepModelRequest | None:
    """The deployment of what drafts; None where the host does.

    Raises:
        InputError: an unknown method, a draft model missing or named without need.
        InfeasibleError: a draft model as large as the target.
    """
    method, name = str(options["method"]), str(options["draft"])
    if method not in METHODS:
        raise InputError("composition speculative, method", method, f"write one of {', '.join(METHODS)}")
    if bool(name) != (method == "draft"):
        remedy = "name the draft model, as draft=NAME" if method == "draft" else "leave it out, or write method=draft"
        raise InputError("composition speculative, draft", name, remedy)
    if method == "ngram":
        return None
    cut = Parallelism(tp=request.parallelism.tp)
    plain = dataclasses.replace(request, parallelism=cut, overheads=NO_OVERHEADS, options=_no_options())
    if method == "mtp":
        layer = dataclasses.replace(request.model.groups[-1], count=1)
        return dataclasses.replace(plain, model=dataclasses.replace(request.model, groups=(layer,)))
    draft = load_model(name)
    if num_params(draft) >= num_params(request.model):
        raise InfeasibleError(
            f"the draft model {draft.id} ({num_params(draft) / 1e9:.1f} billion parameters) is not smaller than the "
            f"target {request.model.id} ({num_params(request.model) / 1e9:.1f}); choose a smaller draft",
            "engine",
        )
    return dataclasses.replace(plain, model=draft)


def _no_options() -> Mapping[str, str | int | float | bool]:
    return MappingProxyType({})


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> Speculative:
    """Verify steps around `inner`; raises as `_draft_request`, and InputError for tokens or acceptance out of range."""
    tokens = int(options["tokens"])
    if not 1 <= tokens <= 64:
        raise InputError("composition speculative, tokens", tokens, "write 1 to 64 drafted tokens")
    if float(options["host_ms"]) < 0:
        raise InputError("composition speculative, host_ms", options["host_ms"], "write milliseconds from 0")
    acceptance = parse_acceptance(str(options["acceptance"]), tokens)
    drafting = _draft_request(request, options)
    if drafting is None:
        return Speculative(inner, options, acceptance, None, 1.0)
    weights = [
        sum(weight for weight, _ in layers) for layers in (attention_layers(drafting.model), inner.attention_layers)
    ]
    return Speculative(inner, options, acceptance, build_step_model("roofline", drafting), weights[0] / weights[1])


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:
    """Weights and cache of what drafts."""
    drafting = _draft_request(request, options)
    if drafting is None:
        return MemoryEffect()
    share = kv_bytes_per_token(drafting.model, 2.0) / kv_bytes_per_token(request.model, 2.0)
    weights = weight_bytes(drafting.model, request.precision) / request.parallelism.tp
    if options["method"] == "mtp":  # embedding and head are the target's own
        deeper = dataclasses.replace(request.model, groups=(*request.model.groups, *drafting.model.groups))
        added = weight_bytes(deeper, request.precision) - weight_bytes(request.model, request.precision)
        weights = added / request.parallelism.tp
    return MemoryEffect(kv_bytes_factor=1.0 + share, extra_bytes=weights)
