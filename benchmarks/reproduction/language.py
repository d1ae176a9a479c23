"""Fine-tune an encoder on SST-2 as in the paper: multirate training, all parameters, and static freezing.

    python -m benchmarks reproduce language --data-dir DIR --plan
    python -m benchmarks reproduce language --data-dir DIR               # continues after it was killed
    python -m benchmarks reproduce language --full-scale --jobs 0        # DistilBERT and SST-2 from the hub
    python -m benchmarks reproduce language --full-scale --dry-run
    python -m benchmarks report                                          # docs/results/reproduction.md

As `reproduce vision`, for SGD with momentum and for AdamW, and with ten seeds for two rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.reproduction import suite
from benchmarks.reproduction.contenders import LANGUAGE


def main(argv: Sequence[str]) -> None:
    """Run the suite."""
    suite.main(LANGUAGE, __doc__, argv)
