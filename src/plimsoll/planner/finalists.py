"""From leaders to plans: finalists are looked at again, simulated whole at their load, priced and put into words."""

from __future__ import annotations

from plimsoll.catalog.rental import Rental
from plimsoll.core.deployment import Deployment
from plimsoll.planner import explain
from plimsoll.planner.branch import Choice, Race, Standing, job_for
from plimsoll.planner.evaluate import FINE, Whole, WholeJob
from plimsoll.planner.pricing import TokenPrices, prefill_share, token_prices
from plimsoll.planner.request import OBJECTIVES
from plimsoll.planner.results import Plan
from plimsoll.planner.stages import OnProgress, silent
from plimsoll.planner.workers import Workers

MAX_ROUNDS = 10
"""Looking closer may change who leads, so it is done again until nothing changes, at most so often."""

Entry = tuple[Standing, Choice]


class Finals:
    """The last stage of a search.

    Args:
        race: after `branch.explore`.
        workers: simulate.
        on_progress: called before each round.
    """

    def __init__(self, race: Race, workers: Workers, on_progress: OnProgress = silent) -> None:
        self.race, self.workers, self.context = race, workers, race.context
        self.on_progress = on_progress
        self._wholes: dict[str, Whole] = {}

    def settle(self) -> None:
        """Refine every leader and simulate it whole, until the lists do not change."""
        for number in range(MAX_ROUNDS):
            coarse = list({s.name: s for s, _ in self.leaders() if s.effort is not FINE}.values())
            if coarse:
                self.on_progress(number, MAX_ROUNDS, f"looking closer at {len(coarse)} finalists")
                jobs = [job_for(self.race, standing, FINE) for standing in coarse]
                for standing, evaluation in zip(coarse, self.workers.run(jobs), strict=True):
                    self.race.record(standing, evaluation, FINE)
            ready = [entry for entry in self.leaders() if entry[0].effort is FINE]
            self._simulate_whole(ready)
            failed = [entry for entry in ready if not self._holds(entry)]
            for standing, choice in failed:
                standing.dropped.add(choice.candidate.replicas)
                self._observe_again(standing)
            if not coarse and not failed:
                return

    def _observe_again(self, standing: Standing) -> None:
        """After a drop other numbers of replicas matter, at loads that were not observed yet."""
        job = job_for(self.race, standing, FINE)
        if job.replicas:
            self.race.record(standing, self.workers.run([job])[0], FINE)
        else:
            standing.choices = ()

    def leaders(self) -> list[Entry]:
        """Everybody in a list or on the Pareto set, each candidate once."""
        top = self.context.request.top
        entries = [entry for objective in OBJECTIVES for entry in self.race.best(objective, top)]
        entries += self.race.pareto()
        return list({entry[1].candidate.name: entry for entry in entries}.values())

    def _simulate_whole(self, entries: list[Entry]) -> None:
        """All replicas at the load that each candidate is judged at."""
        new = [choice for _, choice in entries if choice.candidate.name not in self._wholes]
        jobs = [
            WholeJob(config=choice.candidate.config, replicas=choice.candidate.replicas, load=choice.load)
            for choice in new
        ]
        if new:
            self.on_progress(0, len(new), "simulating whole deployments")
        for choice, whole in zip(new, self.workers.run(jobs), strict=True):
            self._wholes[choice.candidate.name] = whole

    def _holds(self, entry: Entry) -> bool:
        """Whether the whole deployment meets its targets at the load asked for."""
        if self.context.asked_load is None:
            return True  # at half of its capacity
        whole = self._wholes[entry[1].candidate.name]
        return whole.verdict.passed and not whole.growing

    def plan(self, standing: Standing, choice: Choice, rank: int, why: str) -> Plan:
        """One leader as a plan."""
        context, request = self.context, self.context.request
        evaluation, effort = standing.evaluation, standing.effort
        assert evaluation is not None
        assert effort is not None
        self._simulate_whole([(standing, choice)])
        candidate, capacity = choice.candidate, evaluation.capacity
        useful = candidate.replicas - request.spare_replicas
        whole = self._wholes[candidate.name]
        prices = self._prices(standing, choice)
        config = candidate.config
        return Plan(
            rank=rank,
            deployment=Deployment(
                model=request.model.id,
                gpu=config.accelerator.id,
                parallelism=config.parallelism,
                replicas=candidate.replicas * config.num_machines,
                router=request.router,
                engine=config.engine,
                precision=config.precision,
                kv_precision=standing.screened.kv_precision,
                settings=standing.screened.settings,
            ),
            arithmetic=candidate.arithmetic,
            pools=config.pools,
            spare_replicas=request.spare_replicas,
            judged_load=choice.load,
            load_unit=context.unit,
            metrics=whole.metrics,
            verdict=whole.verdict,
            capacity=useful * capacity.max_load,
            capacity_interval=(useful * capacity.interval[0], useful * capacity.interval[1]),
            capacity_seeds=effort.seeds,
            limited_by=capacity.limited_by,
            output_tokens_per_s=useful * evaluation.requests_per_s * context.mean_output_tokens,
            e2e_s=choice.point.latency,
            usd_per_hour=choice.rental.usd_per_hour if choice.rental else None,
            rental=_rental_text(choice.rental, config.accelerator.no_offer_reason),
            usd_per_million_output_tokens=prices.output_usd if prices else None,
            usd_per_million_input_tokens=prices.input_usd if prices else None,
            usd_per_million_tokens=prices.both_usd if prices else None,
            binding_constraint=explain.binding_constraint(context, standing, capacity.limited_by),
            why=why,
            notes=standing.screened.notes,
            error_band=standing.screened.band,
        )

    def _prices(self, standing: Standing, choice: Choice) -> TokenPrices | None:
        """At capacity, or at the load asked for."""
        evaluation = standing.evaluation
        assert evaluation is not None
        if choice.rental is None:
            return None
        useful = choice.candidate.replicas - self.context.request.spare_replicas
        served = useful * evaluation.requests_per_s
        if self.context.asked_load is not None:
            served = self._served_per_s(choice)
        if served <= 0:
            return None
        share = prefill_share(standing.screened.estimator, served / choice.candidate.replicas)
        means = (self.context.mean_prompt_tokens, self.context.mean_output_tokens)
        return token_prices(choice.rental.usd_per_hour, served, *means, share)

    def _served_per_s(self, choice: Choice) -> float:
        """Requests per second of the whole deployment at the load asked for."""
        return self._wholes[choice.candidate.name].requests_per_s if self.context.whole else choice.load


def _rental_text(rental: Rental | None, no_offer_reason: str) -> str:
    if rental is None:
        return f"no price: {no_offer_reason or 'no public on-demand offer'}"
    return f"{rental.arithmetic} ({rental.provider})"
