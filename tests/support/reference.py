"""What the package must compute, on plain tensors and step by step: Algorithm 1, and the same idea with AdamW.

Vlaar & Leimkuhler, *Multirate Training of Neural Networks* (ICML 2022), in the paper's symbols:
theta_S and theta_F the slow and the fast parameters, p_S and p_F their momenta, mu the momentum
coefficient, k the period of the slow part, h its step size, so that h / k is the inner step size.
The gradient of everything is computed at every step and the slow part of it thrown away when it is
not its turn: nothing here knows how to save time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


Tensors = dict[str, Tensor]
Gradient = Callable[[int, Tensors], Tensors]
"""Step n, which stands for its minibatch, and all parameters -> gradient of the loss by each of them."""


def _zeros(theta: Tensors) -> Tensors:
    return {name: torch.zeros_like(value) for name, value in theta.items()}


def refresh(n: int, k: int) -> bool:
    """Whether the slow part gets a gradient at step n, as it does at every k-th step."""
    return n % k == 0


def idle_steps(n: int, k: int) -> int:
    """Steps since the last gradient of the slow part: 0 at a refresh."""
    return n % k


def algorithm_1(
    theta_S: Tensors,
    theta_F: Tensors,
    grad_L: Gradient,
    *,
    k: int,
    h: Callable[[int], float],
    mu: float,
    steps: int,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    long_step: bool = False,
    drift: float = math.inf,
) -> Tensors:
    """Multirate SGD with linear drift, or without (``long_step``): the whole slow step h at the start of a cycle.

    With a finite ``drift`` the slow part stands still after so many idle steps.

    ``h`` is a function of the step, as a learning-rate schedule is. Weight decay is added to a fresh
    gradient, and a Nesterov step is taken along gradient + mu p, both as `torch.optim.SGD` defines them.
    """
    p_S, p_F = _zeros(theta_S), _zeros(theta_F)
    for n in range(steps):
        gradient = grad_L(n, theta_S | theta_F)
        for i in theta_F:
            g = gradient[i] + weight_decay * theta_F[i]
            p_F[i] = mu * p_F[i] + g
            theta_F[i] = theta_F[i] - h(n) / k * (g + mu * p_F[i] if nesterov else p_F[i])
        for i in theta_S:
            direction = p_S[i]
            if refresh(n, k):
                g = gradient[i] + weight_decay * theta_S[i]
                p_S[i] = mu * p_S[i] + g
                direction = g + mu * p_S[i] if nesterov else p_S[i]
            if not long_step and idle_steps(n, k) <= drift:
                theta_S[i] = theta_S[i] - h(n) / k * direction
            elif long_step and refresh(n, k):
                theta_S[i] = theta_S[i] - h(n) * direction
    return theta_S | theta_F


def multirate_adamw(
    theta_S: Tensors,
    theta_F: Tensors,
    grad_L: Gradient,
    *,
    k: int,
    lr: Callable[[int], float],
    steps: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    coupled: bool = False,
    amsgrad: bool = False,
    long_step: bool = False,
    s: float | None = 1.0,
    drift: float = math.inf,
) -> Tensors:
    """AdamW whose idle parameters drift along ``s`` times u = m_hat / (sqrt(v_hat) + eps).

    With ``s`` None each tensor i has its own s_i = 1.5^-n_i: at a refresh that follows a drift n_i falls by one if
    the fresh gradient and u still agree, and rises by one if not; n_i starts at 7 and stays within 0 and 11.

    Moments and step count of a parameter change with its gradients only. Decoupled weight decay acts in
    full at every step at the current rate; ``coupled`` adds it to the gradient instead, which is Adam.
    """
    theta = theta_S | theta_F
    m, v, v_max, u = _zeros(theta), _zeros(theta), _zeros(theta), _zeros(theta)
    t, level = dict.fromkeys(theta, 0), dict.fromkeys(theta, 7)
    for n in range(steps):
        gradient = grad_L(n, theta)
        moved = dict(theta)
        drifted = n > 0 and not refresh(n - 1, k)
        for i in theta:
            live = i in theta_F or refresh(n, k)
            if live and i in theta_S and drifted:
                agree = float((gradient[i] * u[i]).sum()) > 0
                level[i] = max(level[i] - 1, 0) if agree else min(level[i] + 1, 11)
            if live:
                g = gradient[i] + (weight_decay * theta[i] if coupled else 0.0)
                t[i] += 1
                m[i] = betas[0] * m[i] + (1 - betas[0]) * g
                v[i] = betas[1] * v[i] + (1 - betas[1]) * g**2
                v_max[i] = torch.maximum(v_max[i], v[i])
                m_hat = m[i] / (1 - betas[0] ** t[i])
                v_hat = (v_max if amsgrad else v)[i] / (1 - betas[1] ** t[i])
                u[i] = m_hat / (v_hat.sqrt() + eps)
            decay = 0.0 if coupled else weight_decay
            s_i = 1.5 ** -level[i] if s is None else s
            velocity = (1.0 if live else s_i) * u[i] + decay * theta[i]
            if i in theta_F or (not long_step and idle_steps(n, k) <= drift):
                moved[i] = theta[i] - lr(n) * velocity
            elif long_step and live:
                moved[i] = theta[i] - k * lr(n) * velocity
        theta = moved
    return theta


def random_subsets(
    theta: Tensors,
    grad_L: Gradient,
    mask: Callable[[int, str], Tensor],
    *,
    k: int,
    h: Callable[[int], float],
    mu: float,
    steps: int,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    every_step: bool = False,
) -> Tensors:
    """Random subgroups: theta_S is zero for the fast steps of a cycle, comes back, takes a step k h, is drawn anew.

    ``mask(c, i)`` is draw c of theta_S in tensor i. At a refresh, the first of k steps of a cycle, nothing is zero;
    theta_S of the cycle before takes a step k h and all else a step h. Momenta of theta_S are frozen with it. With
    ``every_step`` there is a new theta_S at each step and no refresh: "drop every step".
    """
    p = _zeros(theta)
    for n in range(steps):
        held = n // k if n % k else None
        back = n // k - 1 if n > 0 and n % k == 0 else None
        if every_step:
            held, back = n, None
        in_S = {i: mask(held, i) if held is not None else torch.zeros_like(theta[i]).bool() for i in theta}
        was_S = {i: mask(back, i) if back is not None else torch.zeros_like(theta[i]).bool() for i in theta}
        s = scale if held is not None else 1.0
        s_i = {i: s if in_S[i].any() else 1.0 for i in theta}  # a tensor without a subset is as it is
        gradient = grad_L(n, {i: torch.where(in_S[i], 0.0, s_i[i] * theta[i]) for i in theta})
        for i in theta:
            moved = mu * p[i] + s_i[i] * gradient[i] + weight_decay * theta[i]
            step = h(n) * torch.where(was_S[i], k * moved, moved)
            p[i] = torch.where(in_S[i], p[i], moved)
            theta[i] = torch.where(in_S[i], theta[i], theta[i] - step)
    return theta


def averaged_copies(
    theta: Tensors,
    grad_L: Gradient,
    *,
    periods: tuple[int, ...],
    h: Callable[[int], float],
    mu: float,
    steps: int,
    weight_decay: float = 0.0,
    momenta: str = "keep",
) -> Tensors:
    """Copies with step sizes h, k h, ..., each on minibatches of its own, averaged when their times meet.

    Returns the fastest copy after ``steps`` minibatches.
    """
    copies = [dict(theta) for _ in periods]
    p = [_zeros(theta) for _ in periods]
    n = time = 0
    while True:
        time += 1
        there = [c for c, period in enumerate(periods) if time % period == 0]
        for c in there:
            if n == steps:
                return copies[0]
            gradient = grad_L(n, copies[c])
            for i in theta:
                p[c][i] = mu * p[c][i] + gradient[i] + weight_decay * copies[c][i]
                copies[c][i] = copies[c][i] - periods[c] * h(n) * p[c][i]
            n += 1
        for i in theta if len(there) > 1 else ():
            mean = sum(copies[c][i] for c in there) / len(there)
            momentum = sum(p[c][i] for c in there) / len(there)
            for c in there:
                copies[c][i] = mean
                if momenta != "keep":
                    p[c][i] = momentum if momenta == "average" else torch.zeros_like(mean)
