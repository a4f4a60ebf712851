"""Branch and bound: which configurations are worth a simulation, and when there are enough.

A configuration is simulated as long as its *optimistic* figures could still bring it

- among the best `top` by cost, by throughput or by latency (one place for each cut: token budgets compete for it), or
- onto the Pareto set of what was simulated so far.

Optimistic means: the mean-value bound on its capacity (`planner.estimate`) times `MARGIN`; once `ENOUGH` configurations
of the same kind (`_kind`) were simulated, no more than its predicted capacity times the best ratio that those reached
of theirs, times `KNOWN_MARGIN`. For latency: the estimate times `LATENCY_DOWN_TO` (then the lowest ratio seen) over
`KNOWN_MARGIN`, and never below a lone request over `KNOWN_MARGIN`. This is a calibrated bound, no proof. What falls
short is not dropped silently: it is rejected with both figures. Waves have a fixed size, so the answer does not depend
on the number of processes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from plimsoll.catalog.rental import Rental
from plimsoll.core.units import SECONDS_PER_HOUR, TOKENS_PER_MILLION
from plimsoll.planner.context import Context
from plimsoll.planner.evaluate import COARSE, Effort, Evaluation, Job, replicas_that_matter, share_of
from plimsoll.planner.pareto import Point, dominates, pareto_set, snapped
from plimsoll.planner.prune import Priced, Screened
from plimsoll.planner.space import Candidate

MARGIN = 1.1
KNOWN_MARGIN = 1.05
ENOUGH = 3
WAVE = 6
LATENCY_DOWN_TO = 0.7
"""Of an estimated latency: no simulation came out lower, for pipelines in chunks (others: 0.95)."""
FIRST_GUESS_FRAC = 0.95
"""Of its prediction, where the search for a capacity starts before anything is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A candidate with figures: predicted optimistically, or simulated.

    Attributes:
        candidate: configuration and replicas.
        rental: its machines; None without a price.
        point: cost (dollars per million tokens, or per hour where a load is asked for; infinite without a price),
            throughput (requests per second or users at capacity, spares left out) and latency (mean end to end, s).
        load: of all replicas, at which the latency holds.
        doubt: median error of the step times behind the figures, over the figures (`perf.error_bands`).
    """

    candidate: Candidate
    rental: Rental | None
    point: Point
    load: float
    doubt: float = 0.0


class Standing:
    """One configuration in the race."""

    def __init__(self, priced: Priced) -> None:
        self.priced = priced
        self.screened: Screened = priced.screened
        self.evaluation: Evaluation | None = None
        self.effort: Effort | None = None
        self.choices: tuple[Choice, ...] = ()
        self.dropped: set[int] = set()  # numbers of replicas that failed when simulated whole

    @property
    def name(self) -> str:
        """Of the configuration."""
        return self.priced.name

    @property
    def doubt(self) -> float:
        """Median error of the step times behind it; 0 where nobody compared."""
        return self.screened.band.median_abs_frac if self.screened.band is not None else 0.0

    @property
    def family(self) -> str:
        """What competes for one place in a list: the configuration without its token budget and its split."""
        config = self.screened.config
        return config.stem if config.pools is None else f"{config.machine_stem} {config.pools.engine}"


class Race:
    """All configurations of a search, what is known of them, and who is still in."""

    def __init__(self, context: Context, priced: Sequence[Priced]) -> None:
        self.context = context
        self.standings = [Standing(one) for one in priced]
        self._capacity_ratios: dict[str, list[float]] = {}
        self._latency_ratios: dict[str, list[float]] = {}
        self._bounds = {one.name: context.load_bound(one.screened.estimator, one.screened.estimate) for one in priced}

    # Figures -----------------------------------------------------------------------------------------------------

    def cost(self, rental: Rental | None, load: float, requests_per_s: float) -> float:
        """Dollars per hour where a load is asked for, else per million tokens at `requests_per_s`."""
        if rental is None or load <= 0 or requests_per_s <= 0:
            return math.inf
        if self.context.asked_load is not None:
            return rental.usd_per_hour
        tokens = self.context.mean_prompt_tokens + self.context.mean_output_tokens
        return rental.usd_per_hour / (requests_per_s * tokens * SECONDS_PER_HOUR / TOKENS_PER_MILLION)

    def bound(self, standing: Standing) -> float:
        """The most that one replica may carry, as far as one knows."""
        ratios = self._capacity_ratios.get(_kind(standing), ())
        bound = self._bounds[standing.name] * MARGIN
        if len(ratios) < ENOUGH:
            return bound
        return min(bound, self._predicted(standing) * max(ratios) * KNOWN_MARGIN)

    def _predicted(self, standing: Standing) -> float:
        """The estimated capacity of one replica."""
        estimate = standing.screened.estimate
        share = estimate.predicted_per_s / estimate.bound_per_s if estimate.bound_per_s > 0 else 1.0
        return self._bounds[standing.name] * share

    def guess(self, standing: Standing) -> float:
        """Where to start looking for its capacity."""
        if standing.evaluation is not None and standing.evaluation.capacity.max_load > 0:
            return standing.evaluation.capacity.max_load
        ratios = self._capacity_ratios.get(_kind(standing), ())
        reached = sum(ratios) / len(ratios) if ratios else FIRST_GUESS_FRAC
        return max(self._predicted(standing) * max(reached, 0.05), 1e-3)

    def _latency_bound(self, standing: Standing, load: float) -> float:
        """The least mean end-to-end latency at `load` of one replica, as far as one knows."""
        alone = standing.screened.estimate.unloaded_e2e_s / KNOWN_MARGIN
        estimated = self.latency_guess(standing, load)
        ratios = self._latency_ratios.get(_shape(standing), ())
        if not math.isfinite(estimated):
            return alone
        down_to = min(ratios) if len(ratios) >= ENOUGH else LATENCY_DOWN_TO
        return max(alone, estimated * down_to / KNOWN_MARGIN)

    def latency_guess(self, standing: Standing, load: float) -> float:
        """Of one replica at `load`; users turn into a rate by Little's law."""
        screened = standing.screened
        if not self.context.whole:
            return screened.estimator.e2e_s(load)
        bound = self._bounds[standing.name]
        return screened.estimator.e2e_s(0.97 * screened.estimate.bound_per_s * min(load / bound, 1.0))

    def optimistic(self, standing: Standing) -> list[Choice]:
        """What the configuration could be at best."""
        bound, asked = self.bound(standing), self.context.asked_load
        choices = []
        for candidate, rental in self._relevant(standing, bound):
            carried = bound * self._useful(candidate)
            if asked is None:
                load = self.guess(standing) / 2.0
                latency = self._latency_bound(standing, load)
            else:
                load = share_of(asked, candidate.replicas, self.context.whole)
                latency = self._latency_bound(standing, load)
            point = Point(self.cost(rental, carried, carried), carried, latency)
            load *= candidate.replicas
            choices.append(Choice(candidate=candidate, rental=rental, point=point, load=load, doubt=standing.doubt))
        return choices

    def _useful(self, candidate: Candidate) -> int:
        return candidate.replicas - self.context.request.spare_replicas

    def _relevant(self, standing: Standing, capacity: float) -> list[tuple[Candidate, Rental | None]]:
        """The numbers of replicas that can matter, given what one replica carries.

        Without a load: those that no other number of the same replicas beats in price per replica and in size, since
        the latency is the same for all. With one: the fewest that carry it (cheapest), the most (fastest) and the one
        in the middle.
        """
        asked = self.context.asked_load
        offered = [pair for pair in standing.priced.candidates if pair[0].replicas not in standing.dropped]
        if asked is None:
            points = [
                Point(pair[1].usd_per_hour / self._useful(pair[0]) if pair[1] else math.inf, self._useful(pair[0]), 0.0)
                for pair in offered
            ]
            return [offered[k] for k in pareto_set(points)]
        by_replicas = {pair[0].replicas: pair for pair in offered}
        spare, whole = self.context.request.spare_replicas, self.context.whole
        chosen = replicas_that_matter(tuple(by_replicas), spare, asked, capacity, whole)
        return [by_replicas[replicas] for replicas in chosen]

    def record(self, standing: Standing, evaluation: Evaluation, effort: Effort) -> None:
        """Take in a simulation, and what it says about the bounds."""
        standing.evaluation, standing.effort = evaluation, effort
        capacity, predicted = evaluation.capacity.max_load, self._predicted(standing)
        if predicted > 0 and effort.seeds == 1:
            self._capacity_ratios.setdefault(_kind(standing), []).append(capacity / predicted)
        for seen in evaluation.observations:
            estimated = self.latency_guess(standing, seen.load)
            if effort.seeds == 1 and math.isfinite(estimated) and estimated > 0 and math.isfinite(seen.e2e_s):
                self._latency_ratios.setdefault(_shape(standing), []).append(seen.e2e_s / estimated)
        self.update_choices(standing)

    def update_choices(self, standing: Standing) -> None:
        """The candidates of an evaluated configuration that carry the load, with their simulated figures."""
        evaluation, asked = standing.evaluation, self.context.asked_load
        assert evaluation is not None
        capacity = evaluation.capacity.max_load
        choices = []
        for candidate, rental in self._relevant(standing, capacity) if capacity > 0 else []:
            per_replica = capacity / 2.0 if asked is None else share_of(asked, candidate.replicas, self.context.whole)
            latency = min(
                (seen.e2e_s for seen in evaluation.observations if math.isclose(seen.load, per_replica, rel_tol=1e-6)),
                default=math.nan,
            )
            if not math.isfinite(latency):
                continue
            useful = self._useful(candidate)
            cost = self.cost(rental, capacity, useful * evaluation.requests_per_s)
            point = Point(cost, useful * capacity, latency)
            load = asked if asked is not None else per_replica * candidate.replicas
            choices.append(Choice(candidate=candidate, rental=rental, point=point, load=load, doubt=standing.doubt))
        standing.choices = tuple(choices)

    # Who leads ---------------------------------------------------------------------------------------------------

    def best(self, objective: str, top: int) -> list[tuple[Standing, Choice]]:
        """The leaders by an objective, one for each family, best first."""
        found: dict[str, tuple[Standing, Choice]] = {}
        entries = [
            (standing, choice)
            for standing in self.standings
            for choice in standing.choices
            if objective != "cost" or math.isfinite(choice.point.cost)
        ]
        for standing, choice in sorted(entries, key=lambda entry: sort_key(objective, entry[1])):
            found.setdefault(standing.family, (standing, choice))
        return list(found.values())[:top]

    def pareto(self) -> list[tuple[Standing, Choice]]:
        """Who is beaten by nobody, cheapest first."""
        entries = [(standing, choice) for standing in self.standings for choice in standing.choices]
        points = [self._axes(choice.point) for _, choice in entries]
        kept = sorted((entries[k] for k in pareto_set(points)), key=lambda entry: sort_key("cost", entry[1]))
        # One of those that tie in everything is enough: the first in order.
        return list({self._axes(entry[1].point): entry for entry in reversed(kept)}.values())[::-1]

    def _axes(self, point: Point) -> Point:
        """With a load asked for all deliver the same throughput: cost and latency alone count."""
        return snapped(point if self.context.asked_load is None else point._replace(throughput=0.0))

    def promising(self) -> list[Standing]:
        """Who could still get into a list or onto the Pareto set and was not simulated, most promising first.

        The order takes the best by cost, throughput and latency in turn, so that all three lists fill early.
        """
        top = self.context.request.top
        places = {objective: self.best(objective, top) for objective in ("cost", "throughput", "latency")}
        front = [self._axes(choice.point) for _, choice in self.pareto()]
        in_race = []
        for standing in self.standings:
            if standing.evaluation is not None:
                continue
            hopes = self.optimistic(standing)
            if any(self._could_place(standing, hope, places, front) for hope in hopes):
                in_race.append((standing, hopes))
        queues = [
            sorted(in_race, key=lambda entry: min(sort_key(objective, hope) for hope in entry[1]))
            for objective in ("cost", "throughput", "latency")
        ]
        order = {entry[0].name: entry[0] for rank in zip(*queues, strict=True) for entry in rank}
        # Pipelines, ranks and pools last: they take several times as long, and often the others rule them out.
        return sorted(order.values(), key=lambda standing: bool(_shape(standing)))

    def _could_place(
        self,
        standing: Standing,
        hope: Choice,
        places: dict[str, list[tuple[Standing, Choice]]],
        front: list[Point],
    ) -> bool:
        for objective, leaders in places.items():
            if objective == "cost" and not math.isfinite(hope.point.cost):
                continue
            own = next((choice for other, choice in leaders if other.family == standing.family), None)
            last = own or (leaders[-1][1] if len(leaders) >= self.context.request.top else None)
            if last is None or sort_key(objective, hope)[0] < sort_key(objective, last)[0]:
                return True
        mine = self._axes(hope.point)
        return not any(other == mine or dominates(other, mine) for other in front)


def _kind(standing: Standing) -> str:
    """Configurations whose predictions are equally good: bottleneck, pipeline or not, prompts whole or in chunks."""
    screened = standing.screened
    budget, prompt = screened.settings.max_num_batched_tokens or 0, screened.estimator.means.tail_prompt_tokens
    whole = "whole " if budget > prompt else ""
    return _shape(standing) + whole + screened.estimate.limited_by


def _shape(standing: Standing) -> str:
    """What a replica is made of: stages, ranks that step together, pools, or one engine."""
    config = standing.screened.config
    if config.pools is not None:
        return "pools "
    if config.parallelism.dp > 1:
        return "ranks "
    return "piped " if config.parallelism.pp > 1 else ""


def sort_key(objective: str, choice: Choice) -> tuple[float, float, float, float, str]:
    """Best first; ties by the next thing that matters, then by name.

    At the same cost (of whole machines, for a load) fewer pipeline stages come first: no run of a real pipeline was
    compared with ours, and nobody puts up with one who need not.

    Every figure counts as if it were worse by its median error, so that of two the better known one is preferred; a
    bound and the simulation that follows have the same doubt, and a bound stays one.
    """
    worse = 1.0 + choice.doubt
    point = (choice.point.cost * worse, choice.point.throughput / worse, choice.point.latency * worse)
    cost, throughput, latency = (float(f"{x:.6g}") for x in point)  # what differs by rounding ties
    usd = choice.rental.usd_per_hour if choice.rental else math.inf
    stages, name = choice.candidate.config.parallelism.pp, choice.candidate.name
    if objective == "cost":
        return (cost, stages, -throughput, latency, name)
    if objective == "throughput":
        return (-throughput, usd, stages, latency, name)
    return (latency, usd, stages, -throughput, name)


def explore(
    race: Race,
    run_jobs: Callable[[list[Job]], Iterable[Evaluation]],
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Simulate coarsely, wave by wave, until nobody left could still place.

    Args:
        race: of the search.
        run_jobs: evaluates a wave, in the order given.
        on_step: called with how many were simulated and how many may still be.
    """
    done = 0
    while waiting := race.promising():
        wave = waiting[:WAVE]
        jobs = [job_for(race, standing, COARSE) for standing in wave]
        for standing, evaluation in zip(wave, run_jobs(jobs), strict=True):
            race.record(standing, evaluation, COARSE)
        done += len(wave)
        if on_step is not None:
            on_step(done, done + len(waiting) - len(wave))


def job_for(race: Race, standing: Standing, effort: Effort) -> Job:
    """The job that evaluates one configuration."""
    counts = (candidate.replicas for candidate, _ in standing.priced.candidates)
    replicas = tuple(count for count in counts if count not in standing.dropped)
    return Job(config=standing.screened.config, effort=effort, guess=race.guess(standing), replicas=replicas)
