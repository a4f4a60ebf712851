"""What the classes of users' own files answer, looked at before the engine works with it.

A compiled engine takes Python's own numbers and types only. Here numpy's become Python's, and what the engine could not
carry out becomes one line that names the file and the method: the same, compiled or not.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plimsoll.core.errors import InputError, PlimsollError
from plimsoll.engine.fleets.counting import TooPatientError
from plimsoll.engine.general.plan import GeneralPlan, GeneralPolicy
from plimsoll.engine.policy import COMPILED, StepPlan, WrongPlanError, seconds_of, whole, wrong_setting
from plimsoll.engine.replicas.replica_state import ReplicaState

SAY_NOTHING = ("admitted", "released", "goes_on", "entered", "deal", "idled")
"""Methods of a policy whose answers nobody reads; a compiled caller would refuse them."""
ASKED = frozenset(("cached_tokens", "cached_tokens_of", "held_blocks", "generated"))
"""What a policy may ask a view of a request."""
SETTINGS = ("holds", "fill", "then_fill", "spare", "pad_prompt", "pass_tokens")
"""Whole numbers of a plan, some of a GeneralPlan only."""


def said(error: BaseException) -> str:
    """An error in words; some have none of their own."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_in(path: str, error: BaseException) -> str:
    """``in plan(), line 6``: the last frame of a traceback that lies in a file; empty if none does."""
    file = Path(path).resolve()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == file]
    if not frames:
        return ""
    name = frames[-1].name
    return f"in line {frames[-1].lineno}" if name == "<module>" else f"in {name}(), line {frames[-1].lineno}"


def is_ours(thing: object) -> bool:
    """Whether a class or a function is one of the engine's, which a user's file has only imported."""
    function = getattr(thing, "__func__", thing)
    return str(getattr(function, "__module__", "")).startswith("plimsoll.")


def look_at_policy(cls: type, name: str, field: str) -> None:
    """Have the answers of a user's policy class looked at; it is of this import alone."""
    if inspect.isroutine(plan := cls.plan):  # type: ignore[attr-defined]
        cls.plan = _looked_at(plan, name, field)  # type: ignore[attr-defined]
    if COMPILED:
        take_numpys_numbers()
    if not issubclass(cls, GeneralPolicy):
        return
    for method in ("reserve", "key"):
        if inspect.isfunction(own := inspect.getattr_static(cls, method)) and not is_ours(own):
            setattr(cls, method, _whole_number(own, name, field))
    for method in SAY_NOTHING:
        if inspect.isfunction(own := inspect.getattr_static(cls, method)) and not is_ours(own):
            setattr(cls, method, _silent(own))


def take_numpys_numbers() -> None:
    """Let what is interpreted ask a compiled view by numpy's numbers; compiled callers do not come this way."""
    kinds: list[Any] = [ReplicaState]
    for kind in kinds:  # and those below, as they are found
        kinds.extend(below for below in kind.__subclasses__() if is_ours(below) and below not in kinds)
        for name in ASKED.intersection(vars(kind)):
            if not hasattr(vars(kind)[name], "__wrapped__"):  # by the policy before
                setattr(kind, name, _asked(vars(kind)[name]))


def _asked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def asked(self: Any, of: Any) -> Any:
        return method(self, [_plain(one) for one in of] if method.__name__ == "cached_tokens_of" else _plain(of))

    return asked


def _whole_number(method: Callable[..., Any], name: str, field: str) -> Callable[..., Any]:
    """A method whose answers are whole numbers, as Python's; a key need not be one, but for `numbered`."""
    is_key = method.__name__ == "key"

    @functools.wraps(method)
    def looked_at(self: Any, *given: Any) -> Any:
        answer = method(self, *given)
        if type(answer) is int or (is_key and not self.numbered):
            return answer
        number = int(answer) if isinstance(answer, bool) else whole(answer)
        if number is None:
            where = _where(method.__name__, method)
            raise InputError(field, name, f"{where} returned {answer!r:.60}; return a whole number (int)")
        return number

    return looked_at


def _silent(method: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(method)
    def silent(self: Any, *given: Any) -> None:
        method(self, *given)

    return silent


def look_at_router(cls: type, name: str, field: str) -> None:
    """Have the answers of a user's router class looked at; unless it says otherwise it needs its replicas' state."""
    if not hasattr(cls, "needs_state"):
        cls.needs_state = True  # type: ignore[attr-defined]
    for method, count in (("choose", _replicas_of), ("pick", len)):
        own = inspect.getattr_static(cls, method, None)
        if callable(getattr(cls, method, None)) and not is_ours(own):
            setattr(cls, method, _replica_number(own, method, count, name, field))


def _replicas_of(fleet: Any) -> int:
    return len(fleet.replicas)


def _replica_number(own: Any, method: str, count: Callable[[Any], int], name: str, field: str) -> Callable[..., int]:
    """A router's method, with a refusal of what is no replica's number. `own` is as the class has it."""
    bound = hasattr(own, "__get__")  # else an object that is called as it is
    where = _where(method, getattr(own, "__func__", own))

    @functools.wraps(own, updated=())
    def looked_at(self: object, replicas: Any, *given: Any) -> int:
        try:
            answer = (own.__get__(self, type(self)) if bound else own)(replicas, *given)
        except (PlimsollError, TooPatientError):
            raise
        except (Exception, SystemExit) as error:
            place = place_in(name, error) or f"in {method}()"
            raise InputError(field, name, f"it failed {place}: {said(error)}") from error
        number, known = whole(answer), count(replicas)
        if number is None or not 0 <= number < known:
            remedy = f"return the number of a replica, from 0 to {known - 1}"
            raise InputError(field, name, f"{where} returned {answer!r:.60}; {remedy}")
        return number

    return looked_at


def _where(name: str, method: Callable[..., Any]) -> str:
    """``plan(), line 6,``: a method, and where it begins, unless it is a compiled one."""
    return f"{name}(), line {method.__code__.co_firstlineno}," if inspect.isfunction(method) else f"{name}()"


def _looked_at(plan: Callable[..., Any], name: str, field: str) -> Callable[..., Any]:
    """`plan`, with a refusal of what is no plan: the engine would fail on it later, in a place that tells nothing."""
    where = _where("plan", plan)

    @functools.wraps(plan)
    def looked_at(self: object, view: Any) -> Any:
        try:
            answer = plan(self, view)
        except WrongPlanError as error:
            raise InputError(field, name, f"{where} {error}") from error
        kind = GeneralPlan if isinstance(self, GeneralPolicy) else StepPlan
        if not isinstance(answer, kind):
            raise InputError(field, name, f"{where} returned {answer!r:.60}; return a {kind.__name__}")
        wrong = _made_plain(answer, len(view.requests)) or _wrong_in(answer, view)
        if wrong:
            raise InputError(field, name, f"{where} {wrong}")
        return answer

    return looked_at


def _made_plain(plan: StepPlan, known: int) -> str:
    """Make numpy's numbers in a plan Python's; returns what is none, in words, or nothing."""
    for name in SETTINGS:
        value = getattr(plan, name, 0)
        if type(value) is not int or value < 1:
            wrong = wrong_setting(name, value)
            if wrong:
                return wrong
            if type(value) is not int:
                setattr(plan, name, whole(value))
    if isinstance(plan, GeneralPlan) and (type(plan.until_s) is not float or plan.until_s != plan.until_s):
        if wrong := wrong_setting("until_s", plan.until_s):
            return wrong
        plan.until_s = seconds_of(plan.until_s) or 0.0
    chunks = plan.chunks
    if not isinstance(chunks, (list, tuple)) or not all(isinstance(c, (list, tuple)) and len(c) == 2 for c in chunks):
        return f"planned the chunks {chunks!r:.60}; write a list of pairs (request, tokens)"
    if not all(isinstance(pair, tuple) and type(pair[0]) is type(pair[1]) is int for pair in chunks):
        plan.chunks = [(_plain(request), _plain(tokens)) for request, tokens in chunks]
    return _made_plain_moves(plan, known)


def _made_plain_moves(plan: StepPlan, known: int) -> str:
    """The same of those who give way, pause or come back."""
    if isinstance(plan, GeneralPlan) and plan.evict:
        evict = [(_plain(request), mode, place) for request, mode, place in plan.evict]
        if wrong := _unknown("evict", [request for request, _, _ in evict], known):
            return wrong
        plan.evict = tuple(evict)
    for name in ("preempt", "pause", "swap_in"):
        requests = getattr(plan, name, ())
        if len(requests):
            requests = tuple(_plain(request) for request in requests)
            if wrong := _unknown(name, requests, known):
                return wrong
            setattr(plan, name, requests)
    plan.interrupts = bool(plan.preempt or plan.pause)  # either may have been set after it was made
    return ""


def _plain(value: Any) -> Any:
    number = whole(value)
    return value if number is None else number


def _unknown(name: str, requests: Any, known: int) -> str:
    for request in requests:
        if type(request) is not int or not 0 <= request < known:
            return f"planned {name} of request {request!r:.40}; there are those from 0 to {known - 1}"
    return ""


def _wrong_in(plan: StepPlan, view: Any) -> str:
    """What the engine could not carry out of a plan, in words; empty if nothing."""
    holds, chunks = plan.holds, plan.chunks
    known, planned = len(view.requests), dict.fromkeys((request for request, _ in chunks), 0)
    for request, tokens in chunks:
        if type(request) is not int or not 0 <= request < known:
            return f"planned request {request!r:.40}; there are those from 0 to {known - 1}"
        if type(tokens) is not int or tokens < 1:
            shown = f"{tokens!r:.40} tokens of request {request}"
            return f"planned {shown}; plan at least 1" if type(tokens) is int else f"planned {shown}; write an int"
        planned[request] += tokens
        left = _left_of(request, plan, view)
        if planned[request] > left:
            return f"planned {planned[request]} tokens of request {request}; {left} are left of its prompt"
    if chunks and plan.fill and (len(chunks) > 1 or left <= tokens):
        shown = f"planned the chunks {chunks!r:.60} with fill={plan.fill}"
        return f"{shown}; that is for one chunk which does not end its prompt; write fill=0"
    if chunks and holds > 1:
        if len(chunks) > 1:
            return f"planned {len(chunks)} chunks with holds={holds}; with several chunks a plan holds for 1 step"
        most = (left - 1) // tokens
        if holds > max(most, 1):
            shown = f"{tokens} tokens of request {request} with holds={holds}"
            return f"planned {shown}, of which none may end the prompt; write holds={max(most, 1)} at most"
    return ""


def _left_of(request: int, plan: StepPlan, view: Any) -> int:
    """Tokens of a request that a plan may have computed."""
    target: int = view.requests.target[request]
    if request in view.prefilling:
        return target - int(view.prefilling[request])
    if request in view.waiting:
        return target
    # Who gives way in this very plan computes its own tokens again too: how many is known when it has given way.
    return int(view.requests.final[request]) if request in plan.preempt else 0
