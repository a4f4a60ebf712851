"""What ``--engine`` names: an engine of the catalogue, in a version or by an alias, or a scheduling policy."""

from __future__ import annotations

import dataclasses

from plimsoll.api.checks import check_engine_name, check_policy
from plimsoll.catalog.engine_facts import parse_version
from plimsoll.catalog.engines import (
    EngineFacts,
    find_engine,
    list_engines,
    load_engine,
    oldest_version,
    written_version,
)
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.engine.cluster import CLUSTERS, POLICIES
from plimsoll.engine.plugins import list_plugins
from plimsoll.planner.pools import list_pool_engines

DEFAULT_ENGINE = "vllm-v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedEngine:
    """What a name stands for.

    Attributes:
        name: as answers say it: the catalogue's id, with the version where one was asked for; a policy's own name.
        facts: of the engine; a policy without an engine of its own starts and sizes its memory like vLLM.
        policy: the scheduling policy.
        is_deployable: whether it is an engine of the catalogue.
        notes: sentences for the user.
    """

    name: str
    facts: EngineFacts
    policy: str
    is_deployable: bool
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name without a version."""
        return self.facts.id if self.is_deployable else self.name


def named_engine(field: str, name: str) -> NamedEngine:
    """What `name` stands for: ``vllm-v1``, ``vllm``, ``vllm-v1@0.19.0``, ``sarathi-serve``, ``mine.py``.

    Raises:
        InputError: a version that cannot be read, a version of a policy, an engine that is not simulated yet.
        UnknownNameError: nothing that is known, or a version of it.
    """
    plain, at, _ = name.partition("@")
    policies = (*list_plugins(POLICIES), *list_pool_engines())
    is_policy = plain.endswith(".py") or (plain in policies and plain not in list_engines())
    found = None if is_policy else find_engine(name)
    if found is None:
        if at and is_policy:
            raise InputError(field, name, f"{plain} is a scheduling policy and has no versions; write {plain}")
        if at:
            raise UnknownNameError(field, plain, list_engines())
        if not is_policy:
            check_engine_name(field, name, (*list_engines(), *policies, *list_plugins(CLUSTERS)))
        return NamedEngine(name=name, facts=load_engine(DEFAULT_ENGINE), policy=name, is_deployable=False)
    check_policy(field, name, found.policy)
    return NamedEngine(
        name=f"{found.id}@{found.version}" if at else found.id,
        facts=found,
        policy=found.policy,
        is_deployable=True,
        notes=_version_notes(found) if at else (),
    )


def _version_notes(engine: EngineFacts) -> tuple[str, ...]:
    """What to say of a version that nothing is known of: it may not even exist."""
    version = parse_version(engine.version)
    for known, which in ((written_version(engine.id), "last"), (oldest_version(engine.id), "oldest")):
        if version > parse_version(known) if which == "last" else version < parse_version(known):
            return (f"{engine.id} {engine.version} is taken to be like {known}, the {which} that is known",)
    return ()
