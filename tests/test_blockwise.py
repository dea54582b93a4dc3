"""Attention block by block: torch's, forward and backward, document by document."""

import pytest
import torch
from torch.nn import functional as F

from multimodal_gpt.model import blockwise
from multimodal_gpt.recipe import estimate

HEADS, WIDTH = 3, 8


def drawn(count, dtype=torch.float64):
    draw = torch.Generator().manual_seed(count)
    return [torch.randn(count, HEADS, WIDTH, dtype=dtype, generator=draw).requires_grad_() for _ in range(4)]


def by_torch(*parts, lengths):
    documents = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in parts), strict=True)
    found = [F.scaled_dot_product_attention(*document, is_causal=True) for document in documents]
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 2], [5, 40, 1], [blockwise.BLOCK], [blockwise.BLOCK + 1, 3], [300, 127, 260]]
)
def test_it_is_torchs_attention_and_its_gradients(lengths):
    *parts, slope = drawn(sum(lengths))
    found, known = blockwise.attend(*parts, lengths), by_torch(*parts, lengths=lengths)
    assert torch.allclose(found, known, atol=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(y, parts, slope) for y in (found, known)), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 2)
    *parts, _ = drawn(8)
    assert torch.autograd.gradcheck(lambda *x: blockwise.attend(*x, [5, 3]), parts)


def test_parts_may_be_views_of_one_product():
    lengths = [130, 9]
    whole = torch.randn(
        139, HEADS * 3 * WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    views = whole.unflatten(-1, (3 * HEADS, WIDTH)).split(HEADS, dim=1)
    (mine,), (theirs,) = (
        torch.autograd.grad(how.square().sum(), whole)
        for how in (blockwise.attend(*views, lengths), by_torch(*views, lengths=lengths))
    )
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_what_it_does_not_suit():
    query, *_ = drawn(4)
    assert blockwise.suits(query, query, [4])
    assert blockwise.suits(query.float(), query.float(), [1, 3])
    assert not blockwise.suits(query.bfloat16(), query.bfloat16(), [4])
    assert not blockwise.suits(query, query[:, :1], [4])
    assert not blockwise.suits(query, query, [blockwise.LONGEST + 1])


def test_the_estimate_knows_how_long_documents_may_be():
    assert estimate.LONGEST_KEPT == blockwise.LONGEST
