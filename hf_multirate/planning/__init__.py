"""Find out before training what a setting would save."""

from hf_multirate.planning.plan import plan
from hf_multirate.planning.results import GroupPlan, Plan, StepPlan, plans_reaching


__all__ = ["GroupPlan", "Plan", "StepPlan", "plan", "plans_reaching"]
