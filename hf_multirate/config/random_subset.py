"""Settings of random subsets: weights that are zero between two refreshes of their group."""

from __future__ import annotations

from dataclasses import dataclass

from hf_multirate.config.validation import require_bool, require_choice, require_int, require_number


UNITS = ("element", "neuron")
REDRAWS = ("cycle", "step")


@dataclass(frozen=True)
class RandomSubset:
    """Settings of a random subset of the weights of a rate group.

    Attributes:
        fraction: Share of the weights in the subset, greater than 0 and less than 1.
        unit: Unit of a draw. ``element`` draws single weights. ``neuron`` draws rows of each matrix, i.e. all weights
            into one neuron or channel; with ``biases`` also the bias of each row.
        biases: Whether the subset may contain one-dimensional parameters: biases and the scales of norms.
        rescale: Whether the remaining weights are multiplied by ``1 / (1 - fraction)`` while the subset is zero, as
            dropout does with activations.
        redraw: Frequency of draws. ``cycle`` draws a new subset after each refresh of the group. ``step`` draws one at
            every step, without refreshes, and requires period 1: the baseline "drop every step" of the paper.
        seed: Seed of the draws, combined with the number of the draw and the name of the parameter.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has the wrong type.
    """

    fraction: float = 0.5
    unit: str = "element"
    biases: bool = False
    rescale: bool = False
    redraw: str = "cycle"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the values, and convert them to plain ones."""
        fraction = require_number("fraction of a subset", self.fraction)
        if not 0 < fraction < 1:
            raise ValueError(
                f"fraction of a subset must be between 0 and 1 (exclusive), got {fraction}: otherwise no weight, or "
                "every weight of the group, would be zero."
            )
        values = {
            "fraction": fraction,
            "unit": require_choice("unit of a subset", self.unit, UNITS),
            "biases": require_bool("biases of a subset", self.biases),
            "rescale": require_bool("rescale of a subset", self.rescale),
            "redraw": require_choice("redraw of a subset", self.redraw, REDRAWS),
            "seed": require_int("seed of a subset", self.seed),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @property
    def scale(self) -> float:
        """Factor on the remaining weights while the subset is zero."""
        return 1.0 / (1.0 - self.fraction) if self.rescale else 1.0

    def held(self, refresh: int, since: int) -> int | None:
        """Number of the draw whose subset is zero at a step; None if no weight is zero.

        Args:
            refresh: Number of the last refresh up to the step, counted from 0; negative before the first refresh.
            since: Steps since that refresh.

        Examples:
            >>> [RandomSubset().held(*position) for position in ((-1, 0), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
            [None, None, 0, 0, None, 1]
        """
        if refresh < 0:
            return None
        if self.redraw == "step":
            return refresh
        return refresh if since else None

    def returning(self, refresh: int, since: int) -> int | None:
        """Number of the draw whose subset was zero until a step and takes its long step now, or None.

        Args:
            refresh: Number of the last refresh up to the step, counted from 0; negative before the first refresh.
            since: Steps since that refresh.

        Examples:
            >>> [RandomSubset().returning(*position) for position in ((-1, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
            [None, None, None, 0, None, 1]
        """
        return refresh - 1 if self.redraw == "cycle" and refresh > 0 and since == 0 else None
