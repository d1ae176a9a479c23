"""Which part of a rate group with ``idle="zero"`` is held at zero: settings, without the group or the model."""

from __future__ import annotations

from dataclasses import dataclass


UNITS = ("element", "neuron")
REDRAWS = ("cycle", "step")


@dataclass(frozen=True)
class Subset:
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
        TypeError: the seed is not an integer, or a switch not a bool.
    """

    fraction: float = 0.5
    unit: str = "element"
    biases: bool = False
    rescale: bool = False
    redraw: str = "cycle"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, (int, float)):
            raise TypeError(f"fraction of a subset must be a number, got {self.fraction!r}.")
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"fraction of a subset must be between 0 and 1, without either, got {self.fraction}: nothing, or the "
                "whole group, would be held at zero."
            )
        if self.unit not in UNITS:
            raise ValueError(f"unit of a subset must be one of {UNITS}, got {self.unit!r}.")
        if self.redraw not in REDRAWS:
            raise ValueError(f"redraw of a subset must be one of {REDRAWS}, got {self.redraw!r}.")
        for switch in ("biases", "rescale"):
            value = vars(self)[switch]
            if not isinstance(value, bool):
                raise TypeError(f"{switch} of a subset must be True or False, got {value!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed of a subset must be an integer, got {self.seed!r}.")

    @property
    def scale(self) -> float:
        """Factor on the weights that are left while the subset is held at zero."""
        return 1.0 / (1.0 - self.fraction) if self.rescale else 1.0

    def held(self, refresh: int, since: int) -> int | None:
        """Number of the draw that is held at zero at a step, or None if nothing is.

        Args:
            refresh: Number of the last refresh up to the step, from 0; negative before the first.
            since: Steps since that refresh.

        >>> [Subset().held(*position) for position in ((-1, 0), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
        [None, None, 0, 0, None, 1]
        """
        if refresh < 0:
            return None
        if self.redraw == "step":
            return refresh
        return refresh if since else None

    def returning(self, refresh: int, since: int) -> int | None:
        """Number of the draw that was held until a step and takes its long step now, or None.

        >>> [Subset().returning(*position) for position in ((-1, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
        [None, None, None, 0, None, 1]
        """
        return refresh - 1 if self.redraw == "cycle" and refresh > 0 and since == 0 else None
