"""Muon for the matrices of the blocks, AdamW for everything else, in one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) moves a matrix by its momentum made
orthogonal: all directions count alike, however rare their gradient. torch has `torch.optim.Muon`, but one
matrix at a time, always in bf16 (20 times as slow as float32 on a CPU without bf16 units), and without AdamW
for the rest, where Lightning's automatic optimization wants a single optimizer.

N matrices of equal shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's iteration: singular values end between 0.7 and 1.2, after few rounds."""
ROUNDS = 5
TINY = 1e-7


def orthogonal(matrices: Tensor, rounds: int = ROUNDS) -> Tensor:
    """(N, R, C) -> (N, R, C) with R <= C: same singular vectors, singular values near 1; zeros stay zeros.

    Newton-Schulz: only products of matrices. In bf16 on a GPU, which is exact enough, else as given.
    """
    a, b, c = QUINTIC
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    if x.shape[2] > 2 * x.shape[1] and x.dtype != torch.bfloat16:
        return _all_rounds(x @ x.mT, rounds) @ x
    for _ in range(rounds):
        gram = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def _all_rounds(gram: Tensor, rounds: int) -> Tensor:
    """(N, R, R) what all rounds together multiply matrices by, from their products of rows (N, R, R).

    A round takes 8 R^3 steps instead of 4 R^2 C + 2 R^3: on a CPU 8 matrices of 160 x 640 take 0.6 of the
    time, 512 x 2048 half. Where singular values fall off steeply it is off by up to 5 parts in 10,000 in
    float32; by too much in bf16.
    """
    factor = whole = _one_round(gram)
    for _ in range(rounds - 1):
        gram = factor @ gram @ factor
        factor = _one_round(gram)
        whole = factor @ whole
    return whole


def _one_round(gram: Tensor) -> Tensor:
    a, b, c = QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def step_size(shape: Sequence[int]) -> float:
    """What makes an orthogonal matrix as large, per number, as a step of AdamW (root mean square 0.2).

    So one learning rate and one weight decay serve both: Liu et al. 2025, Muon is scalable.
    """
    return 0.2 * math.sqrt(max(shape))


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `kind` "muon" hold matrices only, those with "adamw" anything.

    Args:
        groups: dicts of params, kind and weight_decay.
        learning_rate: of all groups.
        momentum: of Muon, with Nesterov's look ahead.
        betas: momenta of AdamW.
        fused: whether AdamW runs as one kernel.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        learning_rate: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        fused: bool = True,
    ) -> None:
        own: dict[str, dict[str, Any]] = {
            "muon": {"momentum": momentum},
            "adamw": {"betas": betas, "eps": 1e-8, "fused": fused},
        }
        super().__init__([{**group, **own[group["kind"]]} for group in groups], {"lr": learning_rate})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all groups; gives what the closure gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                {"muon": self._muon, "adamw": self._adamw}[group["kind"]](group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads, momenta = _gradients(params), [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for same in _by_shape(params):
            updates = orthogonal_all([ahead[i] for i in same])
            chosen = [params[i] for i in same]
            torch._foreach_add_(chosen, updates, alpha=-group["lr"] * step_size(chosen[0].shape))

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                # A fused kernel counts steps where the weights are.
                place = p.device if group["fused"] else torch.device("cpu")
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=place)
        states = [self.state[p] for p in params]
        adamw(
            params,
            _gradients(params),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _gradients(params: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def orthogonal_all(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonal` of matrices that have one shape, or that shape turned round, in one batch of products."""
    whole = [m.full_tensor() if isinstance(m, DTensor) else m for m in matrices]
    tall = [m.shape[0] > m.shape[1] for m in whole]
    batch = torch.stack([m.mT if turned else m for m, turned in zip(whole, tall, strict=True)])
    found = [x.mT if turned else x for x, turned in zip(orthogonal(batch).unbind(), tall, strict=True)]
    return [_laid_out_as(m, x) for m, x in zip(matrices, found, strict=True)]


def _laid_out_as(matrix: Tensor, update: Tensor) -> Tensor:
    """The part of an update that belongs here, where FSDP has spread the matrix over processes.

    Each process does all products anew: cheaper at our sizes than sending results about.
    """
    if not isinstance(matrix, DTensor):
        return update
    mesh = matrix.device_mesh
    return DTensor.from_local(update, mesh, [Replicate()] * mesh.ndim).redistribute(mesh, matrix.placements)


def _by_shape(params: Sequence[Tensor]) -> list[list[int]]:
    """Indexes of matrices that make one batch; a shape and the same turned round go together."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, p in enumerate(params):
        found[tuple(sorted(p.shape))].append(index)
    return list(found.values())
