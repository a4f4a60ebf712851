"""What policies and routers of users' own files answer: numpy's numbers do, and the rest is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.plugins import construct, load_plugin, policy_named
from tests.unit.test_engine_policies import OneSecond

POLICIES = "plimsoll.engine.policies"
HEAD = """import numpy as np
from plimsoll.engine.general import GeneralPlan, GeneralPolicy
from plimsoll.engine.policy import StepPlan


class Mine(GeneralPolicy):
    {settings}

    def __init__(self, config):
        pass

    def plan(self, view):
        if view.running:
            {decodes}
        r = view.waiting[0]
        t = view.requests.target[r]
        {prompt}
"""
DECODES, PROMPT = "return GeneralPlan()", "return GeneralPlan([(r, t)])"


def load(n: int = 3) -> Workload:
    return Workload(arrival_s=floats(range(n)), prompt_tokens=ints([4] * n), output_tokens=ints([3] * n))


def ends(folder: Path, settings: str = "", decodes: str = DECODES, prompt: str = PROMPT) -> list[float]:
    file = folder / "mine.py"
    file.write_text(HEAD.format(settings=settings, decodes=decodes, prompt=prompt))
    with policy_named(str(file)):
        found: list[float] = simulate(
            load(), EngineConfig(num_blocks=10, policy=str(file)), OneSecond()
        ).finish_s.tolist()
    return found


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": "memory = 'fixed'\n    def reserve(self, requests, r): return np.int64(requests.final[r])"},
        {"settings": "keyed = numbered = True\n    def key(self, view, r): return np.int64(3)"},
        {"settings": "keyed = numbered = 1\n    def key(self, view, r): return True"},
        {"settings": "def admitted(self, view, r): return 5"},
        {"settings": "pads_rows = np.True_"},
        {"prompt": "return GeneralPlan([(np.int64(r), np.int32(t))])"},
        {"prompt": "return GeneralPlan([[r, t]], holds=np.int64(1), fill=np.int64(0), spare=np.int64(0))"},
        {"prompt": "return GeneralPlan([(r, t)], decode=None, wakes_on_arrival=np.True_, all_wait=0)"},
        {"prompt": "view.held_blocks(np.int64(r)) if view.running else 0\n        return GeneralPlan([(r, t)])"},
        {"decodes": "first = np.int64(next(iter(view.running)))\n            view.cached_tokens_of([first])\n"
         "            assert view.held_blocks(first) and view.cached_tokens(first) and view.generated(first)\n"
         "            return GeneralPlan(until_s=np.float32(1e9))"},
        {"prompt": "p = GeneralPlan([(r, t)])\n        p.pause = []\n        return p"},
    ],
)  # fmt: skip
def test_numpys_numbers_and_whatever_is_true_do(tmp_path: Path, changed: dict[str, str]) -> None:
    assert ends(tmp_path, **changed) == ends(tmp_path)


@pytest.mark.parametrize("name", ["holds", "fill", "spare", "pad_prompt", "pass_tokens"])
@pytest.mark.parametrize("value", ["True", "False", "np.float64(2)"])
def test_what_is_no_whole_number_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"planned {name}=.*; write a whole number \(int\)"):
        ends(tmp_path, prompt=f"return GeneralPlan([(r, t)], {name}={value})")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": "return GeneralPlan([(r, t)], until_s=10**400)"}, "planned until_s=1000"),
        ({"prompt": "return GeneralPlan([(r, t)], fill=8)"}, "one chunk which does not end its prompt; write fill=0"),
        ({"prompt": "return StepPlan([(r, t)])"}, "; return a GeneralPlan"),
        ({"prompt": "return GeneralPlan([(r, t)], pause=[10**30])"}, "planned pause of request 1000"),
        (
            {"settings": "memory = 'fixed'\n    def reserve(self, requests, r): return 2.5"},
            "reserve(), line 8, returned 2.5; return a whole number",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_named(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        ends(tmp_path, **changed)
    assert words in str(caught.value)
    assert "mine.py" in str(caught.value)


def routed(folder: Path, answer: str, head: str = "") -> list[int]:
    file = folder / "mine.py"
    file.write_text(f"import numpy as np\n\n\nclass Mine:\n    {head}\n    def choose(self, fleet, r, now_s):\n"
                    f"        return {answer}\n")  # fmt: skip
    run = simulate(load(), EngineConfig(num_blocks=10, replicas=3, router=str(file)), OneSecond())
    return [int(number) for number in np.asarray(run.replica)]


@pytest.mark.parametrize("head", ["", "needs_state = False", "counts_requests = needs_state = True"])
def test_a_router_may_return_numpys_numbers(tmp_path: Path, head: str) -> None:
    assert routed(tmp_path, "np.int64(2 - r)", head) == [2, 1, 0]


@pytest.mark.parametrize("head", ["", "needs_state = False", "counts_requests = needs_state = True"])
@pytest.mark.parametrize("answer", ["None", "1.0", "'1'", "-1", "3", "True", "10**30"])
def test_what_is_no_replicas_number_is_refused(tmp_path: Path, head: str, answer: str) -> None:
    with pytest.raises(
        InputError, match=r"mine\.py.*choose\(\), line 6, returned .*; return the number of a rep"
    ) as caught:
        routed(tmp_path, answer, head)
    assert caught.value.field == "--router"


def test_a_router_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it failed in choose\(\), line 7: ZeroDivisionError"):
        routed(tmp_path, "1 // 0")
    with pytest.raises(InputError, match=r"it failed in __init__\(\), line 5: ZeroDivisionError"):
        routed(tmp_path, "0", "def __init__(self): 1 // 0")


def test_options_too_large_and_whole_numbers_for_shares() -> None:
    config = EngineConfig(num_blocks=10)
    with pytest.raises(InputError, match=r"option clip_max_new_tokens of sglang.*give a whole number of at most"):
        construct(load_plugin(POLICIES, "sglang", "--engine"), "sglang", config, {"clip_max_new_tokens": 10**20})
    with pytest.raises(InputError, match=r"watermark: -1.0 cannot"):
        construct(load_plugin(POLICIES, "vllm-v1", "--engine"), "vllm-v1", config, {"watermark": -1})
    with pytest.raises(InputError, match=r"num_buckets: 0 cannot"):
        construct(load_plugin(POLICIES, "s3", "--engine"), "s3", config, {"num_buckets": 0})
