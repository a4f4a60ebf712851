"""What the search calls in other packages, in one place, so that tests can put their own parts in."""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.engines import Compatibility, EngineFacts, check_compatibility, find_engine, load_engine
from plimsoll.catalog.rental import Rental, rental
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, MissingExtraError
from plimsoll.core.run import Run
from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, plugins, simulate
from plimsoll.perf.compositions import Choice, build_composed, combined_memory_effect, parse_step_model
from plimsoll.perf.error_bands import ErrorBand, error_band
from plimsoll.perf.factors import Factors
from plimsoll.perf.memory import MemoryAssumptions, MemoryPlan, kv_capacity
from plimsoll.perf.overheads import HostTime, choose_host_time, in_use
from plimsoll.perf.profiles.outside import extrapolated
from plimsoll.perf.request import StepModelRequest
from plimsoll.planner.own_defaults import with_own_defaults
from plimsoll.planner.pools import with_pools
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.sizing import (
    composed_assumptions,
    composed_compatibility,
    composed_memory,
    engine_config,
    with_host_time,
    with_option_defaults,
)
from plimsoll.planner.space import ReplicaConfig
from plimsoll.planner.swap import with_swap_seconds

STAND_IN = "vllm-v1"


class Parts:
    """The real parts for one request. Remembers step models, because token budgets share them."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.notes: dict[str, str] = {}
        self.stage_notes: dict[str, str] = {}  # for whoever is shown a plan with pipeline stages
        self._models: dict[str, StepModel] = {}
        self._host_times: dict[tuple[str, Parallelism], HostTime] = {}
        if request.overheads is not None:
            asked = choose_host_time(STAND_IN, {}, request.overheads)
            figures = [(asked.name, asked.steps), (asked.frontend_name, asked.frontend)]
            said = "; ".join(f"{name} ({one.source})" for name, one in figures if name)
            self.notes["overheads"] = f"host time: {said}"
        if self._compositions:
            names = ", ".join(choice.name for choice in self._compositions)
            self.notes["compositions"] = f"no launch flag is known for {names}: the commands start an engine without"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_models": {}}  # step models hold functions; a worker builds its own

    @property
    def _compositions(self) -> tuple[Choice, ...]:
        return parse_step_model(self.request.step_model)[1]

    def like(self, request: PlanRequest) -> Parts:
        """The same kind of parts for another request."""
        return type(self)(request)

    def facts(self, engine: str) -> EngineFacts:
        """Of a deployable engine; a scheduling policy alone starts and sizes its memory like vLLM."""
        return find_engine(engine) or load_engine(STAND_IN)

    def compatibility(self, config: ReplicaConfig) -> Compatibility:
        """Whether the engine would start this cut at this precision, as compositions change it, on this GPU.

        Raises:
            InfeasibleError: it would not, with the reason.
        """
        facts = self.facts(config.engine)
        if config.parallelism.pp > 1 and not plugins.runs_in_stages(self.policy(config.engine)):
            reason = f"{config.engine} is simulated on one pipeline stage only; use PP 1"
            raise InfeasibleError(reason, "engine")
        fits = check_compatibility(
            facts,
            self.request.model,
            config.accelerator,
            config.parallelism,
            config.precision,
            self.request.kv_precision,
        )
        if not self._compositions:
            return fits
        wanted = self._wanted(config, fits.kv_precision)
        return composed_compatibility(fits, facts, wanted, self.request.step_model)

    def memory(self, config: ReplicaConfig, max_model_len: int, expected_tokens: int, kv_precision: str) -> MemoryPlan:
        """KV blocks and complete engine settings of one replica, or of one machine of its pools.

        Raises:
            InfeasibleError: the weights or one sequence do not fit.
        """
        given: EngineSettings = self.request.settings
        settings = dataclasses.replace(
            given,
            max_num_batched_tokens=config.max_num_batched_tokens or given.max_num_batched_tokens,
            max_model_len=given.max_model_len or max_model_len,
        )
        if config.pools is not None:
            split = {"prefill": config.pools.prefill, "decode": config.pools.decode}
            settings = dataclasses.replace(settings, options=split)
        else:
            settings = with_own_defaults(settings, self.policy(config.engine), settings.max_model_len or max_model_len)
        composed, effect = combined_memory_effect(self._wanted(config, kv_precision), self._compositions)
        assumed = composed_assumptions(
            effect, MemoryAssumptions(engine=self.facts(config.engine), expected_sequence_tokens=expected_tokens)
        )
        memory = kv_capacity(
            self.request.model,
            config.accelerator,
            config.parallelism,
            composed.precision,
            kv_precision,
            settings,
            assumed,
        )
        memory = composed_memory(memory, effect, assumed)
        factors = self.request.factors.get(config.accelerator.id, Factors())
        if factors.kv_blocks != 1.0:
            memory = dataclasses.replace(memory, num_blocks=max(2, round(memory.num_blocks * factors.kv_blocks)))
        if config.pools is None:
            return with_swap_seconds(memory, self.policy(config.engine), config.accelerator)
        return with_pools(memory, 1, config.pools.engine, self.request.model, config.accelerator, config.parallelism)[0]

    def step_model(self, config: ReplicaConfig, kv_precision: str) -> StepModel:
        """Seconds of a step on one replica; one object for all token budgets."""
        key = f"{config.machine_stem} {kv_precision}"
        if key not in self._models:
            self._models[key] = self._build(config, kv_precision)
        return self._models[key]

    def _wanted(self, config: ReplicaConfig, kv_precision: str) -> StepModelRequest:
        return StepModelRequest(
            model=self.request.model,
            gpu=config.accelerator,
            parallelism=config.parallelism,
            precision=config.precision,
            kv_precision=kv_precision,
            overheads=self.host_time(config).steps,
            factors=self.request.factors.get(config.accelerator.id),
        )

    def _build(self, config: ReplicaConfig, kv_precision: str) -> StepModel:
        """The step model asked for; the roofline where silicon's package is not installed."""
        wanted = self._wanted(config, kv_precision)
        try:
            model = build_composed(self.request.step_model, wanted)
            used = in_use(self.host_time(config), model.describe())
            notes = self.notes if config.parallelism.pp == 1 else self.stage_notes
            notes.update({note: note for note in used.notes})
            return model
        except MissingExtraError as error:
            base, plus, compositions = self.request.step_model.partition("+")
            if base.strip() != "silicon":
                raise
            self.notes[str(error)] = f"{error}; the roofline answers instead"
            return build_composed(f"roofline{plus}{compositions}", wanted)

    def host_time(self, config: ReplicaConfig) -> HostTime:
        """Of the engine's version and options, or the one that was asked for."""
        key = (config.engine, config.parallelism)
        if key not in self._host_times:
            found, facts = find_engine(config.engine), self.facts(config.engine)
            name = config.engine if found is None else found.id
            given, policy = self.request.settings.options, self.policy(config.engine)
            options = with_option_defaults(given, policy, facts, config.parallelism)
            self._host_times[key] = choose_host_time(name, options, self.request.overheads, config.parallelism.pp)
        return self._host_times[key]

    def error_band(self, model: StepModel) -> ErrorBand | None:
        """Where measured step times lie around the model's; None where nobody compared."""
        describe = getattr(model, "describe", None)
        facts = {} if describe is None else describe()
        return None if describe is None or extrapolated(facts) else error_band(facts)

    def rental(self, config: ReplicaConfig, replicas: int) -> Rental | None:
        """The cheapest machines that hold so many replicas; None without a published price."""
        return rental(config.accelerator, config.parallelism.num_gpus, replicas * config.num_machines)

    def policy(self, engine: str) -> str:
        """The scheduling policy that stands for a deployable engine."""
        found = find_engine(engine)
        policy = engine if found is None else found.policy
        if policy.endswith(".py") or policy in plugins.list_plugins("plimsoll.engine.policies"):
            return policy
        # NOTE: a scheduler that is not modelled yet is stood in for by vLLM's; memory and compatibility are its own.
        self.notes[engine] = f"{engine}: its scheduler is not modelled yet, {STAND_IN}'s stands in for it"
        return STAND_IN

    def engine(self, config: ReplicaConfig, memory: MemoryPlan, replicas: int, router: str) -> EngineConfig:
        """What `replicas` of a configuration are told; ranks that step together are one pool yet (`with_ranks`)."""
        factors = self.request.factors.get(config.accelerator.id, Factors())
        policy, count = self.policy(config.engine), replicas
        if config.pools is not None:
            policy, count = config.pools.engine, config.num_machines
        told = engine_config(memory, config.parallelism, policy, count, router, self.facts(config.engine))
        told = with_host_time(told, self.host_time(config))
        return dataclasses.replace(told, frontend_s=factors.per_request_s)

    def simulate(self, workload: Workload, config: EngineConfig, model: StepModel) -> Run:
        """What every request sees."""
        with plugins.policy_named(config.policy, "--engines"):
            return simulate(workload, config, model)
