"""Cached decoding = uncached decoding, token by token in float32."""

from dataclasses import replace

import pytest
import torch

from multimodal_gpt.model.cache import KVCache
from multimodal_gpt.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocabulary_size=64, depth=3, width=32, heads=4, kv_heads=2, mlp_hidden=48, context=32)
TOKENS = 20


@pytest.fixture(params=[1, 2, 4], ids=lambda n: f"{n} kv heads")
def net(request):
    torch.manual_seed(0)
    return GPT(replace(CONFIG, kv_heads=request.param)).eval().requires_grad_(False)


@pytest.fixture
def rows():
    return torch.randint(0, 64, (3, TOKENS), generator=torch.Generator().manual_seed(1))


def same(cached: torch.Tensor, whole: torch.Tensor) -> None:
    assert torch.allclose(cached, whole, atol=1e-5), (cached - whole).abs().max()
    assert torch.equal(cached.argmax(-1), whole.argmax(-1))


def decode(
    net: GPT, rows: torch.Tensor, cache: KVCache, until: int = TOKENS
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(places, logits) of every step that feeds each row's next token from where its cache stands."""
    steps = []
    while int(cache.lengths.max()) < until:
        places = cache.lengths.clone()
        token = rows.gather(1, places[:, None])
        steps.append((places, net.logits(net(token, cache=cache))[:, 0]))
    return steps


def test_token_by_token(net, rows):
    whole = net.logits(net(rows))
    for places, logits in decode(net, rows, net.new_cache(3, TOKENS)):
        same(logits, whole[torch.arange(3), places])


def test_equal_prefill_then_decode(net, rows):
    whole = net.logits(net(rows))
    cache = net.new_cache(3, TOKENS)
    same(net.logits(net(rows[:, :11], cache=cache)), whole[:, :11])
    for places, logits in decode(net, rows, cache):
        same(logits, whole[torch.arange(3), places])


def test_unequal_prefill_then_decode(net, rows):
    whole = net.logits(net(rows))
    counts = torch.tensor([4, 9, 1])
    padded = rows[:, :9].where(torch.arange(9) < counts[:, None], 63)
    cache = net.new_cache(3, TOKENS)
    logits = net.logits(net(padded, cache=cache, counts=counts))
    for row, count in enumerate(counts.tolist()):
        same(logits[row, :count], whole[row, :count])
    assert cache.lengths.tolist() == counts.tolist()
    for places, step in decode(net, rows, cache):
        same(step, whole[torch.arange(3), places])


def test_prefill_in_two_unequal_pieces(net, rows):
    whole = net.logits(net(rows))
    cache = net.new_cache(3, TOKENS)
    for counts in (torch.tensor([4, 0, 2]), torch.tensor([3, 7, 0])):
        before = cache.lengths.clone()
        places = (before[:, None] + torch.arange(7)).clamp(max=TOKENS - 1)
        logits = net.logits(net(rows.gather(1, places), cache=cache, counts=counts))
        for row, count in enumerate(counts.tolist()):
            same(logits[row, :count], whole[row, places[row, :count]])


def test_batch_and_single_rows_agree(net, rows):
    together = net.new_cache(3, TOKENS)
    net(rows[:, :6], cache=together, counts=torch.tensor([6, 3, 5]))
    batched = decode(net, rows, together)
    for row, count in enumerate((6, 3, 5)):
        alone = net.new_cache(1, TOKENS)
        net(rows[row : row + 1, :count], cache=alone)
        for (_, one), (_, many) in zip(decode(net, rows[row : row + 1], alone), batched, strict=False):
            same(many[row : row + 1], one)


def test_a_row_may_pause(net, rows):
    whole = net.logits(net(rows))
    cache = net.new_cache(3, TOKENS)
    net(rows[:, :5], cache=cache)
    net(rows[:, 5:6], cache=cache, counts=torch.tensor([1, 0, 1]))
    logits = net.logits(net(rows.gather(1, cache.lengths[:, None]), cache=cache))[:, 0]
    same(logits, whole[torch.arange(3), torch.tensor([6, 5, 6])])


def test_times_go_with_the_tokens(rows):
    torch.manual_seed(0)
    net = GPT(replace(CONFIG, clock=0.5)).eval().requires_grad_(False)
    clock = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(2)).cumsum(1)
    whole = net.logits(net(rows, clock=clock))
    cache = net.new_cache(3, TOKENS)
    net(rows[:, :9], cache=cache, counts=torch.tensor([9, 4, 6]), clock=clock[:, :9])
    while int(cache.lengths.max()) < TOKENS:
        places = cache.lengths.clone()
        token, time = (x.gather(1, places[:, None]) for x in (rows, clock))
        same(net.logits(net(token, cache=cache, clock=time))[:, 0], whole[torch.arange(3), places])


def test_rows_can_be_taken_and_repeated(net, rows):
    whole = net.logits(net(rows))
    cache = net.new_cache(3, TOKENS)
    net(rows[:, :8], cache=cache, counts=torch.tensor([8, 5, 3]))
    chosen = torch.tensor([1, 1, 2])
    taken = cache.take(chosen)
    assert (taken.lengths.tolist(), taken.filled) == ([5, 5, 3], 5)
    for places, logits in decode(net, rows[chosen], taken, until=9):
        same(logits, whole[chosen, places])
    assert cache.lengths.tolist() == [8, 5, 3]


def test_rows_join_where_others_were(net, rows):
    """A short row in the place of a long one, a long one in the place of a short one."""
    whole = net.logits(net(rows))
    cache, other = net.new_cache(3, TOKENS), net.new_cache(2, 9)
    net(rows[[2, 1, 0], :8], cache=cache, counts=torch.tensor([8, 5, 3]))
    net(rows[[0, 2], :9], cache=other, counts=torch.tensor([2, 9]))
    cache.join(torch.tensor([0, 2]), other, torch.tensor([0, 1]))
    assert (cache.lengths.tolist(), cache.filled) == ([2, 5, 9], 9)
    for places, logits in decode(net, rows, cache, until=TOKENS - 1):
        same(logits, whole[torch.arange(3), places])
    with pytest.raises(ValueError, match="holds 4 tokens a row, 9 are needed"):
        net.new_cache(3, 4).join(torch.tensor([0]), other, torch.tensor([1]))


@pytest.mark.parametrize("kept", [[0, 2], [2, 1], [2], [0, 1, 2]])
def test_rows_are_kept(net, rows, kept):
    whole = net.logits(net(rows))
    cache = net.new_cache(3, TOKENS)
    net(rows[:, :8], cache=cache, counts=torch.tensor([8, 5, 3]))
    cache.keep(torch.tensor(kept))
    assert cache.lengths.tolist() == [[8, 5, 3][row] for row in kept]
    assert cache.filled == max(cache.lengths.tolist())
    for places, logits in decode(net, rows[kept], cache, until=12):
        same(logits, whole[torch.tensor(kept), places])


def test_a_full_row_may_stand_beside_padding(net, rows):
    whole = net.logits(net(rows))
    cache = net.new_cache(3, 8)
    net(rows[:, :7], cache=cache, counts=torch.tensor([7, 2, 2]))
    places = (cache.lengths[:, None] + torch.arange(4)).clamp(max=TOKENS - 1)
    logits = net.logits(net(rows.gather(1, places), cache=cache, counts=torch.tensor([1, 4, 4])))
    same(logits[0, :1], whole[0, 7:8])
    same(logits[1:], whole[1:, 2:6])
    assert cache.filled == 8


def test_growth_is_refused(net, rows):
    cache = net.new_cache(3, 6)
    net(rows[:, :6], cache=cache, counts=torch.tensor([6, 1, 1]))
    with pytest.raises(ValueError, match="holds 6 tokens a row, 7 are needed"):
        net(rows[:, :1], cache=cache)
    with pytest.raises(ValueError, match=r"within 0 .. 1 tokens"):
        net(rows[:, :1], cache=cache, counts=torch.tensor([0, 2, 0]))
    assert cache.lengths.tolist() == [6, 1, 1]
