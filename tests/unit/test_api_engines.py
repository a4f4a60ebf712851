"""What ``--engine`` names, and what is said of a version that nothing is known of."""

from __future__ import annotations

import tomllib

import pytest

from plimsoll.api.engines import named_engine
from plimsoll.catalog.engine_facts import DATA_DIR, parse_version
from plimsoll.catalog.engines import list_engines, load_engine, oldest_version, written_version
from plimsoll.core.errors import InputError


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("vllm-v1@0.1", "0.1 is taken to be like 0.8.0, the oldest that is known"),
        ("vllm@0.7.3", "vllm-v1 0.7.3 is taken to be like 0.8.0, the oldest that is known"),
        ("sglang@0.1", "sglang 0.1 is taken to be like 0.5.0, the oldest that is known"),
        ("trtllm@0.16.0", "trtllm 0.16.0 is taken to be like 0.17.0, the oldest that is known"),
        ("vllm@0.99", "vllm-v1 0.99 is taken to be like 0.32.0, the last that is known"),
    ],
)
def test_a_version_that_nothing_is_known_of_says_which_it_is_taken_for(name: str, like: str) -> None:
    (note,) = named_engine("--engine", name).notes
    assert note.endswith(like)


@pytest.mark.parametrize(
    "name", ["vllm-v1", "vllm-v1@0.8.0", "vllm-v1@0.19.0", "vllm@0.32.0", "sglang@0.5.2", "trtllm@1.0"]
)
def test_a_known_version_passes_without_a_word(name: str) -> None:
    assert named_engine("--engine", name).notes == ()


@pytest.mark.parametrize("name", ["vllm-v1@", "sglang@", "vllm-v1@latest"])
def test_a_version_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"engine version: .* cannot be used; write it like 0\.19\.0"):
        named_engine("--engine", name)


@pytest.mark.parametrize("engine", list_engines())
def test_the_oldest_version_has_a_source_and_is_before_what_changed(engine: str) -> None:
    table = tomllib.loads((DATA_DIR / f"{engine}.toml").read_text())
    assert table["oldest"]["source"].startswith("https://")
    assert len(table["oldest"]["date"]) == 10
    oldest = parse_version(oldest_version(engine))
    assert oldest <= parse_version(written_version(engine))
    since = [row["since"] for rows in table.values() if isinstance(rows, list) for row in rows if "since" in row]
    assert all(oldest <= parse_version(version) for version in since if version != "0")
    assert load_engine(engine, oldest_version(engine)).id == engine
