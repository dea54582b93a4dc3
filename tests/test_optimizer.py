"""Muon beside AdamW: the right steps, and the same ones after a restart."""

import io
from dataclasses import replace

import pytest
import torch

from multimodal_gpt.model.gpt import GPT, GPTConfig
from multimodal_gpt.model.muon import MuonAdamW, orthogonal, orthogonal_all, step_size
from multimodal_gpt.model.optimizer import OPTIMIZERS, adamw, muon, parameter_groups

CONFIG = GPTConfig(vocabulary_size=64, depth=2, width=32, heads=4, kv_heads=2, mlp_hidden=48, context=32)
BETAS = (0.9, 0.95)


def make(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(replace(CONFIG))


def learn(net: GPT, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Copying the row before, a new row each step."""
    for step in steps:
        half = torch.randint(0, 64, (8, 8), generator=torch.Generator().manual_seed(step))
        row = torch.cat((half, half), dim=1)
        loss = net.loss(net(row[:, :-1]), row[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_singular_values_become_about_one():
    x = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(1))
    y = orthogonal(x)
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert (u @ v * y).sum((1, 2)).div(y.norm(dim=(1, 2)) * 4).min() > 0.97, "the directions stay"


@pytest.mark.parametrize("fall", [0.0, 1.0, 3.0])
def test_all_rounds_in_one_are_the_rounds(fall):
    x = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.linspace(1, 16, 16) ** -fall @ v  # singular values from 1 to 16 ** -fall
    x[1, 8:] = 0
    expected = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = expected @ expected.mT
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    assert torch.allclose(orthogonal(x), expected, atol=5e-4)


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonal(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))


def test_tall_matrices_join_the_batch_of_wide_ones():
    rng = torch.Generator().manual_seed(1)
    wide, tall = torch.randn(8, 24, generator=rng), torch.randn(24, 8, generator=rng)
    found = orthogonal_all([wide, tall])
    assert torch.allclose(found[0], orthogonal(wide[None])[0], atol=1e-6)
    assert torch.allclose(found[1], orthogonal(tall.T[None])[0].T, atol=1e-6)


def test_a_step_is_as_large_as_one_of_adamw():
    x = orthogonal(torch.randn(1, 64, 160, generator=torch.Generator().manual_seed(1)))
    assert (step_size((64, 160)) * x).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_it_is_torchs_muon_where_torchs_is_exact_enough():
    nets = [make(), make()]
    matrices = parameter_groups(nets[0], 0.1)[0]
    ours = MuonAdamW([{**matrices, "kind": "muon"}], 0.01)
    theirs = torch.optim.Muon(
        parameter_groups(nets[1], 0.1)[0]["params"],
        lr=0.01,
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    before = [p.detach().clone() for p in matrices["params"]]
    for step in range(2):
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            learn(net, optimizer, range(step, step + 1))
    for start, one, two in zip(before, *(parameter_groups(n, 0)[0]["params"] for n in nets), strict=True):
        assert (one - two).norm() < 0.05 * (one - start).norm(), "torch's products are in bf16"


def test_the_rest_is_exactly_adamw():
    one, two = make(), make()
    others = {**parameter_groups(one, 0.1)[1], "kind": "adamw"}
    learn(one, MuonAdamW([others], 0.01, betas=BETAS), range(3))
    group = parameter_groups(two, 0.1)[1]
    learn(two, torch.optim.AdamW([group], lr=0.01, betas=BETAS, fused=True), range(3))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_the_groups_are_those_of_adamw():
    net = make()
    by_kind = {g["kind"]: g for g in muon(net, 0.01, 0.1, BETAS).param_groups}
    first, second = adamw(net, 0.01, 0.1, BETAS).param_groups
    for group, same in ((by_kind["muon"], first), (by_kind["adamw"], second)):
        assert group["weight_decay"] == same["weight_decay"]
        assert [id(p) for p in group["params"]] == [id(p) for p in same["params"]]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_six_steps_are_three_and_three(name):
    straight = make()
    learn(straight, OPTIMIZERS[name](straight, 0.01, 0.1, BETAS), range(6))
    halves = make()
    optimizer = OPTIMIZERS[name](halves, 0.01, 0.1, BETAS)
    learn(halves, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"net": halves.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state, again = torch.load(file, weights_only=True), make(seed=1)
    again.load_state_dict(state["net"])
    optimizer = OPTIMIZERS[name](again, 0.5, 0.0, (0.5, 0.5))
    optimizer.load_state_dict(state["optimizer"])
    learn(again, optimizer, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), again.parameters(), strict=True))


def test_what_is_frozen_stays():
    net = make()
    net.blocks[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    learn(net, muon(net, 0.01, 0.1, BETAS), range(2))
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("blocks.0.")}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_it_learns_what_follows_what(name):
    net, follows = make(), torch.randperm(64, generator=torch.Generator().manual_seed(9))
    optimizer = OPTIMIZERS[name](net, 0.02, 0.1, BETAS)
    for step in range(50):
        row = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(step))
        loss = net.loss(net(row), follows[row])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
