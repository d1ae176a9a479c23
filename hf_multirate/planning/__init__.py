"""Planning: predict the speed-up of configurations before training."""

from hf_multirate.planning.plan import plan
from hf_multirate.planning.results import GroupPlan, Plan, StepPlan, plans_reaching


__all__ = ["GroupPlan", "Plan", "StepPlan", "plan", "plans_reaching"]
