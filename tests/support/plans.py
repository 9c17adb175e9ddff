"""Plans as tests keep them: in files."""

from __future__ import annotations

from collections.abc import Mapping

from colablock.planning.plan import Plan
from colablock.transaction.serialise import read_form

__all__ = ["plan_from_json"]


def plan_from_json(value: Mapping[str, object]) -> Plan:
    """Return the plan that `plan_to_json` wrote."""
    return read_form(Plan, value, "plan")
