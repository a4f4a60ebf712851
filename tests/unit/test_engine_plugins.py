"""Policies and routers by name and by file: what is wrong is named, with what there is instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.plugins import construct, list_plugins, load_plugin, policy_named, runs_in_stages
from tests.unit.test_engine_policies import OneSecond

POLICIES = "plimsoll.engine.policies"
CONFIG = EngineConfig(num_blocks=10)


def user_file(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_every_file_in_the_folder_is_a_policy_of_its_name() -> None:
    names = list_plugins(POLICIES)
    assert "vllm-v1" in names
    for name in names:
        cls = load_plugin(POLICIES, name, "--engine")
        assert cls.__name__.lower() == name.replace("-", "")
        assert construct(cls, name, CONFIG, {})


def test_an_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(InputError) as caught:
        construct(load_plugin(POLICIES, "vllm-v1", "--engine"), "vllm-v1", CONFIG, {"watermarc": 0.1})
    assert "watermarc" in str(caught.value)
    assert "watermark, max_num_active_seqs" in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("watermark", "much"), ("enable_chunked_prefill", 3)])
def test_an_option_of_the_wrong_type_shows_what_fits(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{option} of vllm-v1.*give a value like"):
        construct(load_plugin(POLICIES, "vllm-v1", "--engine"), "vllm-v1", CONFIG, {option: value})


def test_a_whole_number_does_for_a_share() -> None:
    assert construct(load_plugin(POLICIES, "vllm-v1", "--engine"), "vllm-v1", CONFIG, {"watermark": 0})


def test_a_users_file_holds_a_class_named_like_it(tmp_path: Path) -> None:
    file = user_file(tmp_path, "my_own-policy.py", "class MyOwnPolicy:\n    def plan(self, replica): ...\n")
    assert load_plugin(POLICIES, file, "--engine").__name__ == "MyOwnPolicy"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere_to_be_found\n", "ModuleNotFoundError"),
        ("class Broken(:\n", "SyntaxError"),
        ("raise SystemError('no')\n", "SystemError: no"),
        ("import sys\n\nsys.exit(0)\n", "failed in line 3: SystemExit: 0"),
        (
            "def helper():\n    return 1 / 0\n\nhelper()\n",
            "failed in helper(), line 2: ZeroDivisionError: division by zero",
        ),
        ("class Broken:\n    pass\n", "its class Broken has no method plan(view)"),
        ("class Broken:\n    plan = 3\n", "its class Broken has no method plan(view)"),
        (
            "from plimsoll.engine.general.plan import GeneralPolicy\nclass Broken(GeneralPolicy): ...\n",
            "no method plan(view)",
        ),
        ("class Other:\n    pass\n", "must hold a class named Broken"),
        ("Broken = 3\n", "must hold a class named Broken"),
    ],
)
def test_a_broken_file_is_named_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    file = user_file(tmp_path, "broken.py", text)
    with pytest.raises(InputError) as caught:
        load_plugin(POLICIES, file, "--engine")
    assert "broken.py" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_name_say_so() -> None:
    with pytest.raises(InputError, match="no such file"):
        load_plugin(POLICIES, "./nowhere.py", "--engine")
    with pytest.raises(UnknownNameError, match=r"did you mean vllm-v1.*path of a \.py file"):
        load_plugin(POLICIES, "vllm1", "--engine")


HEAD = "from plimsoll.engine.general.plan import GeneralPlan, GeneralPolicy\n\n\nclass Mine(GeneralPolicy):\n"
INIT = "    def __init__(self, config):\n        pass\n\n"
PLAN = "    def plan(self, view):\n        "


def load() -> Workload:
    return Workload(arrival_s=floats([0.0, 1.0]), prompt_tokens=ints([4, 4]), output_tokens=ints([3, 3]))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (INIT.replace("pass", "1 / 0") + PLAN + "pass\n", "in __init__(), line 6: ZeroDivisionError"),
        (INIT.replace("config", "config, size") + PLAN + "pass\n", "make size an option"),
        (INIT + PLAN + "return view.nothing\n", "in plan(), line 9: AttributeError: "),
        (
            INIT + PLAN + "return self.more()\n\n    def more(self):\n        raise OSError\n",
            "in more(), line 12: OSError",
        ),
        (INIT + PLAN + "raise SystemExit(0)\n", "in plan(), line 9: SystemExit: 0"),
        (INIT + PLAN + "pass\n", "plan(), line 8, returned None; return a GeneralPlan"),
        (INIT + PLAN + "return [0]\n", "plan(), line 8, returned [0]; return a GeneralPlan"),
        (INIT + PLAN + "return GeneralPlan([(0, -5)])\n", "plan(), line 8, planned -5 tokens of request 0"),
        (INIT + PLAN + "return GeneralPlan([(9, 4)])\n", "planned request 9; there are those from 0 to 1"),
        (INIT + PLAN + "return GeneralPlan()\n", "in a step that plan() asked for: AssertionError"),
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_what_a_users_policy_does_wrong_names_file_method_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str, relative: bool
) -> None:
    file = user_file(tmp_path, "mine.py", HEAD + body)
    monkeypatch.chdir(tmp_path)
    name = "./mine.py" if relative else file
    config = EngineConfig(num_blocks=10, policy=name)
    with pytest.raises(InputError) as caught, policy_named(name):
        simulate(load(), config, OneSecond())
    assert "mine.py" in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.field == "--engine"


def test_a_good_policy_of_the_users_own_runs(tmp_path: Path) -> None:
    body = "    def plan(self, view):\n        if view.running:\n            return GeneralPlan()\n"
    body += "        first = view.waiting[0]\n        return GeneralPlan([(first, view.requests.target[first])])\n"
    file = user_file(tmp_path, "mine.py", HEAD + INIT + body)
    run = simulate(load(), EngineConfig(num_blocks=10, policy=file), OneSecond())
    assert run.finish_s.tolist() == [3.0, 6.0]


def test_only_a_users_file_is_blamed() -> None:
    with pytest.raises(ZeroDivisionError), policy_named("vllm-v1"):
        _ = 1 / 0
    with pytest.raises(UnknownNameError), policy_named("mine.py"):
        load_plugin(POLICIES, "nobody", "--engine")


def test_a_router_of_the_users_own_has_to_choose(tmp_path: Path) -> None:
    file = user_file(tmp_path, "mine.py", "class Mine:\n    def plan(self, view): ...\n")
    with pytest.raises(InputError, match=r"no method choose\(fleet, request, now_s\)"):
        load_plugin("plimsoll.engine.routers", file, "--router")


def test_true_is_no_number() -> None:
    with pytest.raises(InputError, match=r"max_batch_size of orca.*give a value like 0"):
        construct(load_plugin(POLICIES, "orca", "--engine"), "orca", CONFIG, {"max_batch_size": True})


def test_who_runs_in_pipeline_stages(tmp_path: Path) -> None:
    assert [name for name in list_plugins(POLICIES) if runs_in_stages(name)] == [
        "orca", "sarathi", "sarathi-serve", "sglang", "trtllm", "vllm-v1",
    ]  # fmt: skip
    assert not runs_in_stages(user_file(tmp_path, "mine.py", HEAD + "    def plan(self, view): ...\n"))
