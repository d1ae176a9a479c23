"""Fine-tune a ResNet-50 on images as in the paper: multirate training, all parameters, and static freezing.

    python -m benchmarks reproduce vision --data-dir DIR --plan
    python -m benchmarks reproduce vision --data-dir DIR                 # continues after it was killed
    python -m benchmarks reproduce vision --full-scale --jobs 0          # ResNet-50 and CIFAR-100 from the hub
    python -m benchmarks reproduce vision --full-scale --dry-run
    python -m benchmarks report                                          # docs/results/reproduction.md

The kinds of steps are timed first, with nothing beside them. Then the length is chosen: the fewest epochs at which all
parameters have levelled off. Each row has three trials, and one more beyond an edge. Seed by seed, all rows come with
as many steps as all parameters, and all parameters in the seconds of multirate training. Ablations come last.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.reproduction import suite
from benchmarks.reproduction.contenders import VISION


def main(argv: Sequence[str]) -> None:
    """Run the suite."""
    suite.main(VISION, __doc__, argv)
