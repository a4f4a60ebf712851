"""What the search calls in other packages, in one place, so that tests can put their own parts in."""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.engines import Compatibility, EngineFacts, check_compatibility, list_engines, load_engine
from plimsoll.catalog.rental import Rental, rental
from plimsoll.core.deployment import EngineSettings
from plimsoll.core.errors import MissingExtraError
from plimsoll.core.run import Run
from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, plugins, simulate
from plimsoll.perf.build import build_step_model
from plimsoll.perf.calibrated import calibrated
from plimsoll.perf.error_bands import ErrorBand, error_band
from plimsoll.perf.factors import Factors
from plimsoll.perf.memory import MemoryAssumptions, MemoryPlan, kv_capacity
from plimsoll.perf.overheads import list_overheads, load_overheads
from plimsoll.perf.request import StepModelRequest
from plimsoll.planner.pools import with_pools
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.sizing import engine_config
from plimsoll.planner.space import ReplicaConfig
from plimsoll.planner.swap import with_swap_seconds

STAND_IN = "vllm-v1"


class Parts:
    """The real parts for one request. Remembers step models, because token budgets share them."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.notes: dict[str, str] = {}
        self._models: dict[str, StepModel] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_models": {}}  # step models hold functions; a worker builds its own

    def like(self, request: PlanRequest) -> Parts:
        """The same kind of parts for another request."""
        return type(self)(request)

    def facts(self, engine: str) -> EngineFacts:
        """Of a deployable engine; a scheduling policy alone starts and sizes its memory like vLLM."""
        return load_engine(engine if engine in list_engines() else STAND_IN)

    def compatibility(self, config: ReplicaConfig) -> Compatibility:
        """Whether the engine would start this cut at this precision on this GPU.

        Raises:
            InfeasibleError: it would not, with the reason.
        """
        return check_compatibility(
            self.facts(config.engine),
            self.request.model,
            config.accelerator,
            config.parallelism,
            config.precision,
            self.request.kv_precision,
        )

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
        memory = kv_capacity(
            self.request.model,
            config.accelerator,
            config.parallelism,
            config.precision,
            kv_precision,
            settings,
            MemoryAssumptions(engine=self.facts(config.engine), expected_sequence_tokens=expected_tokens),
        )
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

    def _build(self, config: ReplicaConfig, kv_precision: str) -> StepModel:
        """The step model asked for; the roofline where silicon's package is not installed."""
        # NOTE: host overheads of an engine that nobody measured are taken to be those of vLLM.
        overheads = config.engine if config.engine in list_overheads() else "vllm-v1"
        wanted = StepModelRequest(
            model=self.request.model,
            gpu=config.accelerator,
            parallelism=config.parallelism,
            precision=config.precision,
            kv_precision=kv_precision,
            overheads=load_overheads(overheads),
        )
        factors = self.request.factors.get(config.accelerator.id)
        try:
            return calibrated(build_step_model(self.request.step_model, wanted), factors)
        except MissingExtraError as error:
            if self.request.step_model != "silicon":
                raise
            self.notes[str(error)] = f"{error}; the roofline answers instead"
            return calibrated(build_step_model("roofline", wanted), factors)

    def error_band(self, model: StepModel) -> ErrorBand | None:
        """Where measured step times lie around the model's; None where nobody compared."""
        describe = getattr(model, "describe", None)
        return None if describe is None else error_band(describe())

    def rental(self, config: ReplicaConfig, replicas: int) -> Rental | None:
        """The cheapest machines that hold so many replicas; None without a published price."""
        return rental(config.accelerator, config.parallelism.num_gpus, replicas * config.num_machines)

    def policy(self, engine: str) -> str:
        """The scheduling policy that stands for a deployable engine."""
        policy = load_engine(engine).policy if engine in list_engines() else engine
        if policy in plugins.list_plugins("plimsoll.engine.policies"):
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
        told = engine_config(memory, config.parallelism, policy, count, router)
        return dataclasses.replace(told, frontend_s=factors.per_request_s)

    def simulate(self, workload: Workload, config: EngineConfig, model: StepModel) -> Run:
        """What every request sees."""
        return simulate(workload, config, model)
