"""What measured runs say of a deployment beside its step model: fitted by `plimsoll calibrate`."""

from __future__ import annotations

import dataclasses

from plimsoll.core.errors import InputError

RATIOS = ("compute", "bandwidth", "kv_blocks")
SECONDS = ("per_step_s", "per_request_s")
RATIO_LIMITS = (0.05, 20.0)
MOST_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """What measured runs say of a deployment, beside its step model.

    Attributes:
        compute: seconds that prompt chunks add to a step, measured over modelled.
        bandwidth: seconds of the decodes of a step, measured over modelled.
        kv_blocks: KV blocks, measured over modelled.
        per_step_s: host seconds of a step that the step model does not have.
        per_request_s: seconds between a client's sending and the scheduler's first sight of a request.

    Raises:
        InputError: a ratio outside 0.05 to 20, or seconds below 0 or above 60.
    """

    compute: float = 1.0
    bandwidth: float = 1.0
    kv_blocks: float = 1.0
    per_step_s: float = 0.0
    per_request_s: float = 0.0

    def __post_init__(self) -> None:
        low, high = RATIO_LIMITS
        for name in RATIOS:
            if not low <= getattr(self, name) <= high:
                raise InputError(f"calibration {name}", getattr(self, name), f"a ratio lies between {low} and {high}")
        for name in SECONDS:
            if not 0 <= getattr(self, name) <= MOST_SECONDS:
                remedy = f"write seconds between 0 and {MOST_SECONDS:.0f}"
                raise InputError(f"calibration {name}", getattr(self, name), remedy)
