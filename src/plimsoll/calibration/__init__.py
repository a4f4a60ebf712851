"""From measured runs to factors: fit on one part, judge on the other, and refuse what the data does not carry.

readers/ ──► measured.MeasuredRun ──► fit.fit(runs, simulate) ──► document.to_text ──► ``--calibration FILE``

This package knows neither GPUs nor engines: whoever calls `fit` hands in the function that simulates a run.
"""

from plimsoll.calibration.document import Calibration, read_calibration, to_text
from plimsoll.calibration.fit import FACTORS, Fit, Seen, fit, flag_name
from plimsoll.calibration.measured import MeasuredRun, read_measured

__all__ = [
    "FACTORS",
    "Calibration",
    "Fit",
    "MeasuredRun",
    "Seen",
    "fit",
    "flag_name",
    "read_calibration",
    "read_measured",
    "to_text",
]
