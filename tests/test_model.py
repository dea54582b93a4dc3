"""The network: masks, places, losses, and that it can learn."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from multimodal_gpt.errors import UserError
from multimodal_gpt.model import gpt, norm
from multimodal_gpt.model.attention import document_lengths, document_mask
from multimodal_gpt.model.gpt import GPT, GPTConfig, gpt_config
from multimodal_gpt.model.loss import IGNORE
from multimodal_gpt.model.optimizer import adamw, parameter_groups
from multimodal_gpt.model.rotary import clock_numbers, rotate, turn_by, wave_numbers
from multimodal_gpt.recipe.schema import ModelRecipe

CONFIG = GPTConfig(vocabulary_size=64, depth=2, width=32, heads=4, kv_heads=2, mlp_hidden=48, context=32)


def make(seed: int = 0, config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


@pytest.fixture
def net():
    return make().eval()


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def test_the_recipe_decides_the_shape():
    config = gpt_config(ModelRecipe(depth=3, width=96, heads=4, kv_heads=2, context=64), vocabulary_size=128)
    assert (config.head_width, config.mlp_hidden, config.cache_shape) == (24, 384, (3, 2, 24))
    assert gpt_config(ModelRecipe(width=96), 128).kv_heads == 3


def test_shapes_that_do_not_divide_are_named():
    with pytest.raises(UserError, match=r"^model.width: 100 is not a multiple of 2 \* 3 heads \(try 102\)$"):
        gpt_config(ModelRecipe(width=100), 64)
    with pytest.raises(UserError, match=r"^model.kv_heads: 3 does not divide 5 heads"):
        gpt_config(ModelRecipe(kv_heads=3), 64)


def test_the_future_is_not_seen(net):
    first = ids(1, 12)
    second = first.clone()
    second[0, 7:] = (second[0, 7:] + 1) % 64
    same = (net(first) - net(second)).abs().amax(-1)[0]
    assert same[:7].max() == 0
    assert same[7:].min() > 1e-3


def test_packed_documents_do_not_see_each_other(net):
    one, two = ids(1, 7), ids(1, 9, seed=2)
    row = torch.cat((one, two, torch.zeros(1, 4, dtype=torch.long)), dim=1)
    document = torch.tensor([[0] * 7 + [1] * 9 + [-1] * 4])
    position = torch.tensor([[*range(7), *range(9), *range(4)]])
    packed = net(row, position, document)
    assert torch.allclose(packed[:, :7], net(one), atol=1e-5)
    assert torch.allclose(packed[:, 7:16], net(two), atol=1e-5)
    assert packed.isfinite().all()


def test_the_mask_keeps_padding_apart():
    mask = document_mask(torch.tensor([[0, 0, 1, -1, -1]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_document_by_document_is_as_with_a_mask(monkeypatch, kv_heads):
    torch.manual_seed(4)
    net = GPT(gpt_config(ModelRecipe(depth=2, width=64, heads=4, kv_heads=kv_heads, context=24), 128))
    document = torch.tensor([[0] * 7 + [1] * 9 + [-1] * 8, [0] * 24, [*range(23), -1]])
    position = torch.arange(24).expand(3, -1)
    assert document_lengths(document) == [7, 9, 8, 24, *[1] * 24]
    weights = torch.randn(63, 64)

    def result():
        net.zero_grad()
        hidden = net(ids(3, 24), position, document)
        (hidden[document >= 0] * weights).sum().backward()
        return [hidden[document >= 0].detach(), *(p.grad.clone() for p in net.parameters())]

    by_document = result()
    monkeypatch.setattr(gpt, "seen_in", document_mask)
    for one, other in zip(by_document, result(), strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_rotation_turns_pairs_of_halves():
    x = torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(3))
    position = torch.tensor([[0, 1, 2], [5, 0, 9]])
    turned = torch.polar(torch.ones(2, 3, 1, 8), position[..., None, None] * wave_numbers(8, 100.0))
    expected = torch.complex(*x.chunk(2, dim=-1)) * turned
    found = rotate(x, turn_by(position, wave_numbers(8, 100.0)))
    assert torch.allclose(found, torch.cat((expected.real, expected.imag), dim=-1), atol=1e-5)


def test_rotation_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(3))
    waves = wave_numbers(8, 10_000.0)

    def score(i: int, j: int) -> torch.Tensor:
        turned = [rotate(x, turn_by(torch.tensor([[p]]), waves)) for x, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    assert torch.allclose(score(5, 2), score(105, 102), atol=1e-4)
    assert not torch.allclose(score(5, 2), score(5, 3), atol=1e-3)


def test_the_clock_turns_its_share_of_the_angles():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(3))
    beats = clock_numbers(8)

    def score(i: float, j: float, place: int) -> torch.Tensor:
        turned = [
            rotate(x, turn_by(torch.tensor([[p]]), torch.empty(0), torch.tensor([[t]]), beats))
            for x, p, t in ((q, place, i), (k, 0, j))
        ]
        return (turned[0] * turned[1]).sum()

    assert torch.allclose(score(6.5, 2.0, 9), score(38.5, 34.0, 1), atol=1e-4)
    assert not torch.allclose(score(6.5, 2.0, 9), score(6.5, 2.5, 9), atol=1e-3)


def test_a_model_without_a_clock_ignores_it_and_one_with_it_does_not():
    for share, changes in ((0.0, False), (0.5, True)):
        torch.manual_seed(0)
        net = GPT(replace(CONFIG, clock=share)).eval()
        row, clock = ids(1, 8), torch.arange(8.0)[None]
        assert torch.equal(net(row), net(row, clock=torch.zeros(1, 8)))
        assert torch.allclose(net(row), net(row, clock=clock)) is not changes


def test_only_distances_in_time_matter():
    net = make(config=replace(CONFIG, clock=0.5)).eval()
    clock = torch.rand(1, 12, generator=torch.Generator().manual_seed(4)).cumsum(1)
    there = net(ids(1, 12), clock=clock)
    assert torch.allclose(net(ids(1, 12), clock=clock + 64), there, atol=1e-4)
    assert not torch.allclose(net(ids(1, 12), clock=2 * clock), there, atol=1e-2)


def test_norms_are_those_of_torch_and_so_are_their_gradients():
    x = torch.randn(3, 5, 2, 16, generator=torch.Generator().manual_seed(1)).transpose(1, 2) * 4
    x[0, 0, 0] = 0
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    found = []
    for function in (norm._RMSNorm.apply, lambda x, w, eps: F.rms_norm(x, (16,), w, eps)):
        leaves = x.clone().requires_grad_(), torch.linspace(-1, 2, 16, requires_grad=True)
        y = function(*leaves, 1e-6)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, slope)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_norm_is_its_slope():
    x = torch.randn(4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = torch.linspace(-1, 2, 6, dtype=torch.float64)
    leaves = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: norm._RMSNorm.apply(x, w, 1e-2), leaves)


def test_training_takes_the_norm_of_a_cpu():
    layer, x = norm.RMSNorm(8, eps=1e-6), torch.randn(2, 8)
    assert type(layer(x).grad_fn).__name__ == "_RMSNormBackward"
    assert type(layer(x.bfloat16()).grad_fn).__name__ != "_RMSNormBackward"
    with torch.no_grad():
        assert torch.allclose(layer(x), F.rms_norm(x, (8,), layer.weight, 1e-6))


def test_loss_is_the_mean_over_real_targets(net):
    row, targets = ids(2, 10), ids(2, 10, seed=5)
    targets[0, 4:] = IGNORE
    hidden = net(row)
    each = net.token_losses(hidden, targets)
    assert each.shape == (2, 10)
    assert each[0, 4:].abs().max() == 0
    assert torch.allclose(net.loss(hidden, targets), each.sum() / 14)
    assert net.loss(hidden, torch.full_like(targets, IGNORE)) == 0


def test_an_untrained_model_is_nearly_uniform(net):
    loss = net.loss(net(ids(4, 32)), ids(4, 32, seed=7))
    assert abs(loss.item() - torch.tensor(64.0).log().item()) < 0.2


def test_only_matrices_decay(net):
    decayed, others = parameter_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert any(p is net.embedding.weight for p in others["params"])
    assert sum(len(g["params"]) for g in (decayed, others)) == len(list(net.parameters()))


def test_the_same_seed_gives_the_same_weights():
    weights = [torch.cat([p.flatten() for p in make(s).parameters()]) for s in (4, 4, 5)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_learns_to_copy():
    net = make(config=replace(CONFIG, width=64))
    optimizer = adamw(net, 5e-3, 0.1, (0.9, 0.95))
    for step in range(150):
        half = ids(16, 8, seed=100 + step)
        row = torch.cat((half, half), dim=1)
        targets = row[:, 1:].clone()
        targets[:, :7] = IGNORE
        loss = net.loss(net(row[:, :-1]), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0, "copying needs attention by place: log(64) = 4.16 is what guessing gives"
