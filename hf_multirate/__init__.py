"""Multirate training for Hugging Face Transformers.

Fast parameters get a gradient at every optimizer step, slow parameters at every k-th step. Fast steps skip the
backward pass below the fast parameters. In between, slow parameters are frozen or drift along their last update.
Source: Vlaar & Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022.
"""

from hf_multirate.averaged_copies.config import CopiesConfig
from hf_multirate.averaged_copies.controller import AveragedCopies
from hf_multirate.averaged_copies.trainer import AveragedCopiesMixin, AveragedCopiesTrainer
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.random_subset import RandomSubset
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.controller.head_start import HeadStartResult, head_start
from hf_multirate.controller.multirate import Multirate
from hf_multirate.optim.parameter_groups import multirate_parameter_groups
from hf_multirate.planning import Plan, plan
from hf_multirate.trainer.arguments import MultirateSeq2SeqTrainingArguments, MultirateTrainingArguments
from hf_multirate.trainer.trainer import MultirateMixin, MultirateSeq2SeqTrainer, MultirateTrainer


__version__ = "0.1.0"

__all__ = [
    "AveragedCopies",
    "AveragedCopiesMixin",
    "AveragedCopiesTrainer",
    "CopiesConfig",
    "HeadStartResult",
    "Multirate",
    "MultirateConfig",
    "MultirateMixin",
    "MultirateSeq2SeqTrainer",
    "MultirateSeq2SeqTrainingArguments",
    "MultirateTrainer",
    "MultirateTrainingArguments",
    "Plan",
    "RandomSubset",
    "RateGroup",
    "head_start",
    "multirate_parameter_groups",
    "plan",
]
