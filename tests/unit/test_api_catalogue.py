"""What `catalog engines` says of each engine: options with their defaults, rules, settings and where they are from."""

from __future__ import annotations

import pytest

from plimsoll.api.catalogue import ENGINE_PACKAGES, entry
from plimsoll.catalog.engines import list_engines
from plimsoll.core.errors import UnknownNameError
from plimsoll.engine.plugins import list_plugins, load_plugin, option_defaults

SCHEDULERS = [(package, name) for package in ENGINE_PACKAGES for name in list_plugins(package)]


@pytest.mark.parametrize(("package", "name"), SCHEDULERS)
def test_every_engine_shows_options_rules_settings_and_sources(package: str, name: str) -> None:
    found = entry("engines", name)
    rules = found.get("scheduler", found)
    assert set(rules["options"]) == set(option_defaults(load_plugin(package, name, "engine")))
    assert len(rules["rules"]) > 300
    assert rules["settings"]
    assert rules["sources"], "where are the rules from?"
    assert all(url.startswith("https://") for url in rules["sources"])
    assert all(url.removeprefix("https://") in rules["rules"] for url in rules["sources"])


@pytest.mark.parametrize("name", list_engines())
def test_a_deployable_engine_shows_its_facts_and_its_scheduler(name: str) -> None:
    found = entry("engines", name)
    assert found["id"] == name
    assert found["version"]
    assert found["scheduler"]["policy"] == found["policy"]


def test_an_alias_and_a_version_are_found() -> None:
    assert entry("engines", "vllm")["scheduler"] == entry("engines", "vllm-v1")["scheduler"]
    assert entry("engines", "vllm-v1@0.19.0")["version"] == "0.19.0"


def test_a_name_that_is_unknown_lists_all_engines() -> None:
    with pytest.raises(UnknownNameError, match="did you mean orca"):
        entry("engines", "orcaa")
    with pytest.raises(UnknownNameError) as caught:
        entry("engines", "xyzzy")
    assert all(name in str(caught.value) for _, name in SCHEDULERS)
    with pytest.raises(UnknownNameError, match=r"write --step-model roofline\+nanoflow"):
        entry("engines", "nanoflow")
