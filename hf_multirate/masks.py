"""Draw random subsets of weights: a pure function of seed, number of the draw and name.

Nothing is drawn from a global random state, so a run that resumes, another process and another
device have the same subsets, and training without them sees the same random numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from hf_multirate.subset import Subset


def can_hold(subset: Subset, parameter: Tensor) -> bool:
    """Whether ``parameter`` can be in ``subset``: matrices always, vectors with ``biases``, scalars never.

    Nor can the only neuron of a layer: a subset never has all of them.
    """
    rows = 2 if subset.unit == "neuron" else 1
    return (parameter.dim() > 1 or (parameter.dim() == 1 and subset.biases)) and parameter.shape[0] >= rows


def draw(subset: Subset, index: int, name: str, parameter: Tensor) -> Tensor:
    """Draw number ``index`` of the weights of one parameter.

    With unit ``element`` each weight is in by itself, with probability ``fraction``. With unit ``neuron`` the
    nearest whole number of rows is, the same rows in all parameters of a module, and never all of them.

    Args:
        subset: What to draw.
        index: Number of the draw, from 0.
        name: Name of the parameter in the model.
        parameter: Tensor whose shape and device the mask gets.

    Returns:
        A bool tensor of the parameter's shape, on its device: True in the subset.
    """
    if subset.unit == "element":
        drawn = torch.rand(parameter.shape, generator=_generator(subset.seed, index, name)) < subset.fraction
        return drawn.to(parameter.device)
    rows = parameter.shape[0]
    count = min(max(round(subset.fraction * rows), 1), rows - 1)
    chosen = torch.zeros(rows, dtype=torch.bool)
    order = torch.randperm(rows, generator=_generator(subset.seed, index, name.rpartition(".")[0]))
    chosen[order[:count]] = True
    columns = (1,) * (parameter.dim() - 1)
    return chosen.view(rows, *columns).expand(parameter.shape).to(parameter.device)


def _generator(seed: int, index: int, key: str) -> torch.Generator:
    # Neighbouring seeds of a generator may begin alike, and hash() differs from process to process.
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
