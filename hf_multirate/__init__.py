"""Multirate training for Hugging Face Transformers.

Fast parameters get a gradient at every step, slow ones at every k-th, and drift along their last
update in between. Method: Vlaar & Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022.
"""

from hf_multirate.arguments import MultirateSeq2SeqTrainingArguments, MultirateTrainingArguments
from hf_multirate.config import MultirateConfig
from hf_multirate.controller import Multirate
from hf_multirate.copies import AveragedCopies
from hf_multirate.copies_trainer import AveragedCopiesMixin, AveragedCopiesTrainer
from hf_multirate.groups import RateGroup
from hf_multirate.planning import Plan, plan
from hf_multirate.subset import Subset
from hf_multirate.trainer import MultirateMixin, MultirateSeq2SeqTrainer, MultirateTrainer
from hf_multirate.turns import CopiesConfig


__version__ = "0.1.0"

__all__ = [
    "AveragedCopies",
    "AveragedCopiesMixin",
    "AveragedCopiesTrainer",
    "CopiesConfig",
    "Multirate",
    "MultirateConfig",
    "MultirateMixin",
    "MultirateSeq2SeqTrainer",
    "MultirateSeq2SeqTrainingArguments",
    "MultirateTrainer",
    "MultirateTrainingArguments",
    "Plan",
    "RateGroup",
    "Subset",
    "plan",
]
