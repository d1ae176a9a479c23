"""Random subsets of the weights that are zero between two draws: settings."""

from __future__ import annotations

from dataclasses import dataclass

from hf_multirate.config.validation import require_bool, require_choice, require_int, require_number


UNITS = ("element", "neuron")
REDRAWS = ("cycle", "step")


@dataclass(frozen=True)
class RandomSubset:
    """A random subset of the weights of a rate group.

    Attributes:
        fraction: Share of the weights in the subset, between 0 and 1 without either.
        unit: ``element`` draws each weight by itself; ``neuron`` draws rows of each matrix (the weights into one
            neuron or channel), and with ``biases`` the bias that belongs to each row.
        biases: Whether parameters of one dimension, biases and the scales of norms, can be in the subset.
        rescale: Whether the weights that are left are multiplied by ``1 / (1 - fraction)`` in the meantime, as
            dropout does with activations.
        redraw: ``cycle`` draws a new subset after each refresh of the group. ``step`` draws one at every step and
            has no refreshes: the baseline "drop every step" of the paper. It asks for period 1.
        seed: With the number of the draw and the parameter's name it determines the subset.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is of another type.
    """

    fraction: float = 0.5
    unit: str = "element"
    biases: bool = False
    rescale: bool = False
    redraw: str = "cycle"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate, and make values plain ones."""
        fraction = require_number("fraction of a subset", self.fraction)
        if not 0 < fraction < 1:
            raise ValueError(
                f"fraction of a subset must be between 0 and 1, without either, got {fraction}: nothing, or the "
                "whole group, would be held at zero."
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
        """Factor on the weights that are left while the subset is held at zero."""
        return 1.0 / (1.0 - self.fraction) if self.rescale else 1.0

    def held(self, refresh: int, since: int) -> int | None:
        """Number of the draw that is held at zero at a step, or None if nothing is.

        Args:
            refresh: Number of the last refresh up to the step, from 0; negative before the first.
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
        """Number of the draw that was held until a step and takes its long step now, or None.

        Examples:
            >>> [RandomSubset().returning(*position) for position in ((-1, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
            [None, None, None, 0, None, 1]
        """
        return refresh - 1 if self.redraw == "cycle" and refresh > 0 and since == 0 else None
