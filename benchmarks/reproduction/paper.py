"""Figures of the paper: Vlaar & Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022 (PMLR 162).

Means over runs, with the lowest and highest run where they are given. They were read out of the vector graphics of the
figures on transfer learning.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.reproduction.contenders import ALL, BLOCK, HEAD


@dataclass(frozen=True)
class Figure:
    """Test accuracy in percent, training seconds, and the range of the accuracy."""

    accuracy: float
    seconds: float
    range: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """The accuracy as in our tables."""
        low_to_high = "" if self.range is None else f" ({self.range[0]:.2f} to {self.range[1]:.2f})"
        return f"{self.accuracy:.2f}{low_to_high}"


FIGURES = {
    "vision": {
        ALL: Figure(83.24, 9874, (83.19, 83.34)),
        HEAD: Figure(83.41, 4953, (83.25, 83.62)),
        "stages 2 + 3 + 4 + head": Figure(83.20, 7922),
        "stages 3 + 4 + head": Figure(81.37, 6516),
        "stage 4 + head": Figure(75.17, 4390),
        "head": Figure(53.58, 3823),
    },
    "language": {
        ALL: Figure(89.73, 380.2, (89.02, 90.39)),
        HEAD: Figure(89.43, 198.5, (87.92, 90.28)),
        BLOCK: Figure(89.70, 223.9, (89.35, 90.23)),
        "last 3 blocks + head": Figure(88.64, 247.3),
        "last 2 blocks + head": Figure(87.82, 211.9),
        "last block + head": Figure(87.98, 173.3),
        "head": Figure(76.98, 142.0),
    },
}
"""Experiment -> row. Vision: ResNet-50, CIFAR-100, 50 epochs, 5 runs. Language: DistilBERT, SST-2, 10 runs."""


def speedup(experiment: str, row: str) -> float:
    """Of a row over all parameters."""
    return FIGURES[experiment][ALL].seconds / FIGURES[experiment][row].seconds
