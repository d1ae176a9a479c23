"""Find out before training what a setting would save."""

from hf_multirate.planning.plan import GroupPlan, Plan, StepPlan, plan, reaching


__all__ = ["GroupPlan", "Plan", "StepPlan", "plan", "reaching"]
