"""Cross-entropy in chunks is cross-entropy."""

import pytest
import torch
from torch.nn import functional as F

from multimodal_gpt.model import loss
from multimodal_gpt.model.loss import IGNORE, summed_nats, token_nats


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(loss.CHUNK, "cpu", 16)


def given(seed: int = 1, tokens: int = 50, vocabulary: int = 300) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 24, generator=rng).requires_grad_()
    table = torch.randn(vocabulary, 24, generator=rng).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), generator=rng)
    targets[::7] = IGNORE
    return hidden, table, targets


def plain(hidden, table, targets):
    return F.cross_entropy(F.linear(hidden, table).float(), targets, reduction="none")


def test_losses_and_gradients_are_those_of_all_logits_at_once():
    hidden, table, targets = given()
    expected = plain(hidden, table, targets)
    wanted = torch.autograd.grad(expected.sum() * 0.3, (hidden, table))
    total, each = summed_nats(hidden, table, targets.int())
    found = torch.autograd.grad(total * 0.3, (hidden, table))
    assert torch.allclose(total, expected.sum(), rtol=1e-6)
    assert torch.allclose(each, expected, atol=1e-5)
    assert not each.requires_grad
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, atol=2e-6 * two.abs().max().item() * 10)
    assert torch.allclose(token_nats(hidden, table, targets), expected, atol=1e-5)


def test_emphasis_weighs_losses_and_gradients_but_not_what_is_looked_at():
    hidden, table, targets = given()
    emphasis = torch.rand(len(targets), generator=torch.Generator().manual_seed(2)) * 4
    expected = plain(hidden, table, targets)
    wanted = torch.autograd.grad((expected * emphasis).sum(), (hidden, table))
    total, each = summed_nats(hidden, table, targets, emphasis)
    found = torch.autograd.grad(total, (hidden, table))
    assert torch.allclose(total, (expected * emphasis).sum()) and torch.allclose(each, expected, atol=1e-5)
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, atol=2e-5 * two.abs().max().item())
    with torch.no_grad():
        assert torch.allclose(summed_nats(hidden, table, targets, emphasis)[0], total)


def test_large_logits_do_not_overflow():
    hidden, table, targets = given()
    total, _ = summed_nats(hidden * 1e3, table, targets)
    total.backward()
    assert total.isfinite()
    assert table.grad.isfinite().all()


def test_what_is_not_finite_stays_so():
    hidden, table, targets = given()
    poisoned = torch.where(torch.arange(50)[:, None] == 3, float("nan"), hidden)
    assert summed_nats(poisoned, table, targets)[0].isnan()


def test_without_gradients_nothing_is_kept():
    hidden, table, targets = given()
    with torch.no_grad():
        total, each = summed_nats(hidden, table, targets)
    assert not total.requires_grad
    assert torch.equal(each, token_nats(hidden, table, targets))


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen):
    parts = given()
    parts[frozen].requires_grad_(False)
    summed_nats(*parts)[0].backward()
    hidden, table, targets = given()
    plain(hidden, table, targets).sum().backward()
    assert parts[frozen].grad is None
    assert torch.allclose(parts[1 - frozen].grad, (hidden, table)[1 - frozen].grad, atol=1e-4)


def test_under_autocast_the_products_are_bf16_and_the_sums_are_not():
    hidden, table, targets = given()
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(hidden, table, targets)
        total, each = summed_nats(hidden, table, targets)
        doubled, _ = summed_nats(hidden, table, targets, torch.full(targets.shape, 2.0))
    assert each.dtype == total.dtype == doubled.dtype == torch.float32
    assert torch.equal(each, expected) and doubled.item() == pytest.approx(2 * total.item())
    wanted = torch.autograd.grad(expected.sum(), (hidden, table))
    for one, two in zip(torch.autograd.grad(total, (hidden, table)), wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() < 0.01 * two.norm()


def test_the_logits_of_all_tokens_never_exist():
    hidden, table, targets = given(tokens=64, vocabulary=5000)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend(x.numel() for x in [result] if isinstance(x, torch.Tensor))
            return result

    with Watch():
        summed_nats(hidden, table, targets)[0].backward()
    assert max(seen) <= max(16 * 5000, table.numel())
