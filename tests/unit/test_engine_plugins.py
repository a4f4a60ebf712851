"""Policies and routers by name and by file: what is wrong is named, with what there is instead."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

import plimsoll
from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.plugins import construct, list_plugins, load_plugin, parameters_of, policy_named, runs_in_stages
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


@pytest.mark.parametrize("package", [POLICIES, "plimsoll.engine.routers"])
def test_options_are_those_of_the_source(package: str) -> None:
    """Of compiled classes too."""
    folder = Path(plimsoll.__file__).parent.joinpath(*package.split(".")[1:])
    for name in list_plugins(package):
        cls = load_plugin(package, name, "--engine")
        tree = ast.parse((folder / f"{name.replace('-', '_')}.py").read_text())
        (own,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
        (init,) = [n for n in own.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"] or [None]
        if init is None:
            continue
        written = {
            arg.arg: eval(ast.unparse(default), vars(sys.modules[cls.__module__]))
            for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
            if default is not None
        }
        found = {key: p.default for key, p in parameters_of(cls).items() if p.default is not p.empty}
        assert found == written
        assert {key: type(value) for key, value in found.items()} == {k: type(v) for k, v in written.items()}
        kinds = {p.kind for p in parameters_of(cls).values() if p.default is not p.empty}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


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
        (INIT + PLAN + "return GeneralPlan([(0.0, 4)])\n", "planned request 0.0; there are those from 0 to 1"),
        (INIT + PLAN + "return GeneralPlan([0])\n", "planned the chunks [0]; write a list of pairs"),
        (INIT + PLAN + "return GeneralPlan([(0, float('nan'))])\n", "planned nan tokens of request 0; write an int"),
        (INIT + PLAN + "return GeneralPlan([(0, 4.0)])\n", "planned 4.0 tokens of request 0; write an int"),
        (INIT + PLAN + "return GeneralPlan([(0, True)])\n", "planned True tokens of request 0; write an int"),
        (INIT + PLAN + "return GeneralPlan([(0, 10**12)])\n", "planned 1000000000000 tokens of request 0; 4 are left"),
        (INIT + PLAN + "return GeneralPlan([(0, 2 * view.requests.target[0])])\n", "planned 8 tokens of request 0"),
        (INIT + PLAN + "return GeneralPlan([(0, 2), (0, 3)])\n", "planned 5 tokens of request 0; 4 are left"),
        (INIT + PLAN + "return GeneralPlan([(0, 3)])\n", "planned 3 tokens of request 0; 1 are left of its prompt"),
        (INIT + PLAN + "return GeneralPlan([(0, 4)])\n", "planned 4 tokens of request 0; 0 are left of its prompt"),
        (
            INIT + PLAN + "return GeneralPlan([(0, 1)], holds=4)\n",
            "with holds=4, of which none may end the prompt; write holds=3 at most",
        ),
        (
            INIT + PLAN + "return GeneralPlan([(0, 1), (0, 1)], holds=2)\n",
            "with several chunks a plan holds for 1 step",
        ),
        (
            INIT + PLAN + "return GeneralPlan([(0, 4)], pass_tokens=-1)\n",
            "planned pass_tokens=-1; write a whole number",
        ),
        (INIT + PLAN + "return GeneralPlan([(0, 4)], fill=0.5)\n", "planned fill=0.5; write a whole number"),
        (INIT + PLAN + "return GeneralPlan([(0, 4)], until_s=float('nan'))\n", "planned until_s=nan; write a time"),
        (INIT + PLAN + "return GeneralPlan(holds=0)\n", "plan(), line 8, planned holds=0; write a whole number"),
        (INIT + PLAN + "return GeneralPlan([(0, 4)], holds=-3)\n", "planned holds=-3; write a whole number"),
        (INIT + PLAN + "return GeneralPlan(holds=float('inf'))\n", "planned holds=inf; write a whole number"),
        (
            "    def __init__(self):\n        pass\n\n" + PLAN + "pass\n",
            "Mine takes no config; write def __init__(self, config)",
        ),
        (PLAN + "pass\n", "Mine takes no config; write def __init__(self, config)"),
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


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("name", list_plugins(POLICIES))
def test_our_own_policies_plan_nothing_that_a_users_may_not(tmp_path: Path, name: str, stages: int) -> None:
    """Each as a user's file, on a cache that is short, so that prompts are cut, requests give way and come back."""
    if stages > 1 and not runs_in_stages(name):
        pytest.skip("runs on one stage only")
    cls = load_plugin(POLICIES, name, "--engine")
    text = f"from {cls.__module__} import {cls.__name__}\n\n\nclass Mine({cls.__name__}):\n    pass\n"
    file = user_file(tmp_path, "mine.py", text)
    rng = np.random.default_rng(5)
    rows = Workload(
        arrival_s=floats(np.sort(rng.uniform(0, 300, 80))),
        prompt_tokens=ints(rng.integers(1, 120, 80)),
        output_tokens=ints(rng.integers(1, 60, 80)),
    )
    settings = {
        "num_blocks": 60,
        "block_size": 4,
        "max_model_len": 200,
        "max_num_batched_tokens": 40,
        "max_num_seqs": 8,
    }
    model = OneSecond()
    model.num_stages = stages  # type: ignore[misc]
    ours, theirs = (simulate(rows, EngineConfig(policy=policy, **settings), model) for policy in (name, file))
    np.testing.assert_array_equal(ours.finish_s, theirs.finish_s)
    assert np.isfinite(theirs.finish_s).any()


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


def test_a_class_that_fails_outside_the_file_was_being_made(tmp_path: Path) -> None:
    text = "from fractions import Fraction\n\n\nclass Mine(Fraction):\n    def plan(self, view): ...\n"
    file = user_file(tmp_path, "mine.py", text)
    with pytest.raises(InputError, match=r"it failed while its class was made: TypeError"):
        construct(load_plugin(POLICIES, file, "--engine"), file, CONFIG, {})
