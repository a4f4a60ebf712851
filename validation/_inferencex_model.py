"""What we predict for one measured row, before any fitted factor: simulation of the client where prompts and answers
share their GPUs; where they do not, of two pools with the mean prompt.

The client: lengths uniform in [0.8, 1] × nominal, 10 prompts per user, everything at once under a concurrency cap; the
reported figures are means over all requests, the initial burst included (on the vLLM rows of Llama-3.1-70B on Hopper
the simulated mean TTFT is 6 % off with no factor at all, the median a factor of two). Engines are started as the
public scripts start them (`inferencex_recipes.toml`) and schedule by rules of their own (`_policies`); an API server
stands before them (`_inferencex_serve`). Steps come from the roofline; on Hopper with fp4 weights from the measured
tables, whose kernels for such experts the roofline's do not follow. Host time in a step hides behind the GPU, but where
kernels of prompts are launched more slowly than they run (`_inferencex_launch`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plimsoll.catalog import counting
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import ModelSpec, Moe
from plimsoll.catalog.engines import load_engine
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import floats, ints
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, MissingExtraError
from plimsoll.core.run import Status
from plimsoll.core.source import Source
from plimsoll.core.workload import Workload
from plimsoll.engine.config import EngineConfig
from plimsoll.perf.cut import KV_BITS
from plimsoll.perf.memory import MemoryAssumptions, MemoryPlan, kv_capacity
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.roofline import Roofline
from plimsoll.perf.silicon import Silicon, SiliconOptions
from plimsoll.planner.sizing import engine_config
from validation._inferencex_launch import LaunchedPrompts
from validation._inferencex_pooled import PooledRun
from validation._inferencex_pools import Pools
from validation._inferencex_recipes import Recipe, recipe_of
from validation._inferencex_rows import Row, number
from validation._inferencex_seats import recipe_for, seats_of
from validation._inferencex_serve import ApiServer, serve

MOST_REQUESTS = 3000
SHORTEST = 0.8
MEMORY_BUDGET_TOKENS = 8192
ACCEPTED = 0.52  # of drafts, each if the one before was: what `accepted_tokens` of one and of three come to
POLICIES = Path(__file__).with_name("_policies")
MEAN_LENGTH = (1 + SHORTEST) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Means over all requests.

    Attributes:
        ttft_s, tpot_s: seconds.
        method: ``simulated`` or ``two pools``.
        source: the weakest source of the step times.
        pooled: what to simulate again with other steps; None where prompts and answers share GPUs.
    """

    ttft_s: float
    tpot_s: float
    method: str
    source: Source
    pooled: PooledRun | None = None

    def again(self, prompts: float) -> Prediction:
        """The same where prompts take so many times as long, simulated again where there is something to simulate."""
        if self.pooled is None:
            return dataclasses.replace(self, ttft_s=prompts * self.ttft_s)
        pooled = self.pooled.slower_prompts(prompts)
        ttft_s, tpot_s = pooled.means()
        return dataclasses.replace(self, ttft_s=ttft_s, tpot_s=tpot_s, pooled=pooled)


@functools.cache
def model_of(name: str) -> ModelSpec:
    """A catalogue model, or the config at a path."""
    return load_model(name)


@functools.lru_cache(maxsize=16)
def step_model(
    model: str, gpu: str, cut: Parallelism, precision: str, kv_precision: str, measured: bool
) -> Roofline | Silicon:
    """The step model of a deployment; tables where `measured`, and where they are installed."""
    spec, card = model_of(model), load_accelerator(gpu)
    if measured:
        try:
            return Silicon(spec, card, cut, precision, kv_precision, options=SiliconOptions(allow_fallback=True))
        except MissingExtraError:
            pass
    return Roofline(spec, card, cut, precision, kv_precision)


def _steps(row: Row, cut: Parallelism, recipe: Recipe) -> Roofline | Silicon:
    measured = row.architecture == "hopper" and row.precision == "fp4"
    return step_model(row.model, row.gpu, cut, row.precision, recipe.kv_precision, measured)


def is_mixture(row: Row) -> bool:
    """Whether the row's model has routed experts."""
    return any(isinstance(group.mlp, Moe) for group in model_of(row.model).groups)


def _memory(row: Row, cut: Parallelism, recipe: Recipe) -> MemoryPlan:
    longest, seats = row.prompt_tokens + row.output_tokens + 200, max(256, -(-row.concurrency // cut.dp))
    settings = EngineSettings(
        max_model_len=longest, max_num_seqs=seats, max_num_batched_tokens=MEMORY_BUDGET_TOKENS,
        gpu_memory_utilization=recipe.memory_utilization,
    )  # fmt: skip
    assumed = MemoryAssumptions(
        engine=load_engine("vllm-v1"), expected_sequence_tokens=longest, shrink_max_model_len=True
    )
    spec, card = model_of(row.model), load_accelerator(row.gpu)
    return kv_capacity(spec, card, cut, row.precision, recipe.kv_precision, settings, assumed)


def predict(row: Row) -> Prediction:
    """The row by first principles.

    Raises:
        PlimsollError: the deployment does not fit, or a part of it is not in the catalogue.
    """
    return _two_pools(row) if row.is_disaggregated else _simulated(row)


def _simulated(row: Row) -> Prediction:
    cut, recipe = row.cut(is_mixture=is_mixture(row)), recipe_of(row)
    if recipe.data_parallel_attention:
        cut = Parallelism(tp=1, dp=cut.tp, ep=cut.tp)
    steps = _steps(row, cut, recipe)
    stretch = _drafting(row, steps, recipe)
    config = _engine(row, _memory(row, cut, recipe), cut, recipe, stretch)
    workload = client_workload(row, recipe)
    launched = LaunchedPrompts(steps, recipe.prompt_launch_s * model_of(row.model).num_layers)
    run = serve(workload, config, launched, _api_server(row.backend))
    answered = np.flatnonzero(run.status == Status.FINISHED)
    if not len(answered):
        raise InfeasibleError(f"{row.id}: no request fits", "memory")
    seen_s = run.first_token_s[answered]
    if recipe.held_tokens:
        assert run.timeline is not None
        times = [run.timeline.token_times_s(int(request)) for request in answered]
        seen_s = np.array([one[min(recipe.held_tokens, len(one) - 1)] for one in times])
    tpot = (run.finish_s[answered] - seen_s) / np.maximum(1, run.output_tokens[answered] - 1)
    return Prediction(
        ttft_s=float((seen_s - run.arrival_s[answered]).mean()) + _cold_start_s(row, recipe, workload),
        tpot_s=stretch / recipe.accepted_tokens * float(tpot.mean()),
        method="simulated",
        source=steps.source,
    )


def _cold_start_s(row: Row, recipe: Recipe, workload: Workload) -> float:
    """What compiling kernels for a full step adds to the mean: the first users wait for it, the others do not."""
    first = int(workload.prompt_tokens[: row.concurrency].sum())
    return recipe.cold_start_s * row.concurrency / len(workload) if first > recipe.token_budget else 0.0


def client_workload(row: Row, recipe: Recipe) -> Workload:
    """What vLLM's benchmark client sends: all at once, under a cap, and lengths below the nominal ones."""
    users, each = row.concurrency, recipe.prompts_per_user
    num = max(min(each * users, max(MOST_REQUESTS, 2 * users)), each)
    rng = np.random.default_rng(0)
    prompt, output = (
        rng.integers(int(recipe.shortest_frac * nominal), nominal + 1, num)
        for nominal in (row.prompt_tokens, row.output_tokens)
    )
    return Workload(
        arrival_s=floats(np.zeros(num)), prompt_tokens=ints(prompt), output_tokens=ints(output), concurrency=users
    )


def _api_server(backend: str) -> ApiServer:
    host = load_overheads(f"api-server-{backend}")
    return ApiServer(per_request_s=host.per_request_s, per_prompt_token_s=host.per_request_token_s)


def _engine(row: Row, memory: MemoryPlan, cut: Parallelism, recipe: Recipe, stretch: float) -> EngineConfig:
    """The engine of a row: its own rule of scheduling, and the recipe's sizes."""
    options: dict[str, str | int | float | bool]
    name, budget = "vllm-v1", recipe.token_budget
    options = {"async_scheduling": recipe.async_scheduling} if cut.dp == 1 else {}
    if recipe.mixed_chunk:
        name, options = "sglang", {"enable_mixed_chunk": True, "disable_radix_cache": True}
    elif row.backend == "sglang":
        name, options = str(POLICIES / "prompts_first.py"), {"recv_interval": recipe.recv_interval}
    elif row.backend == "trtllm":
        name, budget = str(POLICIES / "prompts_wait.py"), max(budget, row.prompt_tokens + row.concurrency // cut.dp)
        options = {
            "wait_steps": round(recipe.wait_steps * stretch),
            "wait_tokens_frac": recipe.wait_tokens_frac,
            "wait_prompts": 0 if recipe.wait_tokens_frac else cut.dp,
        }
    config = engine_config(memory, cut, name, 1, "round-robin")
    return dataclasses.replace(
        config, max_num_seqs=max(recipe.max_seqs, cut.dp), max_num_batched_tokens=budget * cut.dp, options=options
    )


def _drafting(row: Row, steps: Roofline | Silicon, recipe: Recipe) -> float:
    """How much longer a step takes that verifies drafts, and makes them with a layer of its own."""
    if not recipe.speculative_tokens:
        return 1.0
    drafts, batch = recipe.speculative_tokens, row.concurrency
    read = int(batch * _weighted(steps, MEAN_LENGTH * (row.prompt_tokens + row.output_tokens / 2)))
    plain, verifying = (steps.step_s(0, 0, 0, 0, 0, num, read) for num in (batch, batch * (1 + drafts)))
    return verifying / plain + drafts / model_of(row.model).num_layers


# Prompts and answers on GPUs of their own


def _two_pools(row: Row) -> Prediction:
    """Both pools under the client's closed loop (`_inferencex_pooled`)."""
    recipe = recipe_of(row)
    pooled = PooledRun(
        pools=_pools(row, recipe),
        users=row.concurrency,
        output_tokens=row.output_tokens,
        shortest_frac=recipe.shortest_frac,
    )
    ttft_s, tpot_s = pooled.means()
    return Prediction(ttft_s=ttft_s, tpot_s=tpot_s, method="two pools", source=Source.ASSUMED, pooled=pooled)


def _pools(row: Row, recipe: Recipe) -> Pools:
    """What the columns and the public recipes say of both pools."""
    mixture, spec, share = is_mixture(row), model_of(row.model), (1 + recipe.shortest_frac) / 2
    first, second = row.cut("prefill_", is_mixture=mixture), row.cut("decode_", is_mixture=mixture)
    num_first, num_second = (max(1, number(row.fields[f"{s}_num_workers"])) for s in ("prefill", "decode"))
    prefill, decode = _steps(row, first, recipe), _steps(row, second, recipe)
    prompt, output = share * row.prompt_tokens, share * row.output_tokens
    cache_bytes = counting.kv_bytes_per_token(spec, KV_BITS[recipe.kv_precision] / 8) * prompt
    launch_s, together = recipe.prompt_launch_s * spec.num_layers, max(1, int(MEMORY_BUDGET_TOKENS // prompt))
    seats, known = seats_of(row), recipe_for(row)
    drafts, answers = known.drafts if known else 0, range(1, min(seats, row.concurrency) + 1)
    share_read = recipe.latent_read_frac if row.family == "latent" and second.dp > 1 else 1.0
    answering = functools.partial(_decode_s, decode, prompt + output / 2, share_read)
    # Ranks step together: those without a prompt wait for the others.
    steps = [max(_prefill_s(prefill, prompt, num * first.dp), launch_s) for num in range(1, together + 1)]
    return Pools(
        num_prompt_workers=num_first,
        num_answer_workers=num_second,
        prompts_per_step=first.dp * together,
        seats=seats,
        prompts_s=[0.0, *(steps[(num - 1) // first.dp] for num in range(1, first.dp * together + 1))],
        token_s=[0.0, *(_answers_s(answering, num, drafts, drafts / spec.num_layers) for num in answers)],
        transfer_s=cache_bytes / load_accelerator(row.gpu).inter_node_bytes_per_s / max(1, first.tp),
        num_frontends=recipe.num_frontends,
    )


def _weighted(steps: Roofline | Silicon, length: float) -> int:
    return int(sum(weight * min(length, window or length) for weight, window in steps.attention_layers))


def _prefill_s(steps: Roofline | Silicon, prompt: float, num: int) -> float:
    pairs = int(num * prompt * _weighted(steps, prompt) / 2)
    return steps.step_s(int(num * prompt), num, pairs, 0, num, 0, 0)


def _answers_s(step_s: Callable[[int, int], float], batch: int, drafts: int, drafting: float) -> float:
    """A token of answers, from steps of so many rows and sequences.

    A step that verifies drafts has a row for each, made with a layer of their own (`drafting` of a step), and yields
    those that are accepted.
    """
    yielded = sum(ACCEPTED**number for number in range(drafts + 1))
    return (step_s(batch * (1 + drafts), batch) + drafting * step_s(batch, batch)) / yielded


def _decode_s(steps: Roofline | Silicon, length: float, share_read: float, rows: int, sequences: int) -> float:
    """A step of answers, whose reads of the cache take `share_read` of what the step model says."""
    step_s = steps.step_s(0, 0, 0, 0, 0, rows, sequences * _weighted(steps, length))
    return step_s - (1 - share_read) * (step_s - steps.step_s(0, 0, 0, 0, 0, rows, 0))
