"""The kernel of the classic engines: policies that plan the steps to come (docs/engines.md, "Writing one")."""

from plimsoll.engine.general.plan import UNLIMITED, GeneralPlan, GeneralPolicy

__all__ = ["UNLIMITED", "GeneralPlan", "GeneralPolicy"]
