"""A step of the decoder = the network on the whole row, and the cache is left as the network leaves it."""

from dataclasses import replace

import pytest
import torch

from multimodal_gpt.model.decoding import Decoder
from multimodal_gpt.model.gpt import GPT, GPTConfig
from multimodal_gpt.model.lora import adapt, linear_layers

CONFIG = GPTConfig(vocabulary_size=64, depth=3, width=32, heads=4, kv_heads=2, mlp_hidden=48, context=32)
TOKENS = 14
ROWS = torch.randint(0, 64, (3, TOKENS), generator=torch.Generator().manual_seed(1))
TIMES = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(2)).cumsum(1)


def new_net(**options) -> GPT:
    """Weights of norms are not all 1, and the table is so small that the norms' epsilon matters."""
    torch.manual_seed(0)
    net = GPT(replace(CONFIG, **options)).eval()
    for weight in net.parameters():
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    torch.nn.init.normal_(net.embedding.weight, std=1e-3)
    return net.requires_grad_(False)


def compare(net: GPT, counts: list[int]) -> None:
    """Rows of unequal prompts, then token by token, with the network itself in turns at the end."""
    whole = net(ROWS, clock=TIMES)
    cache, decoder = net.new_cache(3, TOKENS), Decoder(net)
    first = max(counts)
    net(ROWS[:, :first], cache=cache, counts=torch.tensor(counts), clock=TIMES[:, :first])
    for step in range(TOKENS - first):
        places = cache.lengths.clone()
        ids, times = (x.gather(1, places[:, None]) for x in (ROWS, TIMES))
        if step % 3 < 2:
            hidden = decoder.step(ids[:, 0], cache, times[:, 0])
        else:
            hidden = net(ids, cache=cache, clock=times)[:, 0]
        expected = whole[torch.arange(3), places]
        assert torch.allclose(hidden, expected, atol=2e-5), (hidden - expected).abs().max()
    assert cache.lengths.tolist() == [TOKENS - first + count for count in counts]


@pytest.mark.parametrize("counts", [[4, 4, 4], [2, 5, 1]], ids=["even", "uneven"])
@pytest.mark.parametrize("clock", [0.0, 0.5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_step_is_the_network(kv_heads, clock, counts):
    compare(new_net(kv_heads=kv_heads, clock=clock), counts)


def test_rows_that_become_even():
    """Rows of which one is taken go on at one place."""
    net = new_net()
    cache = net.new_cache(3, TOKENS)
    net(ROWS[:, :5], cache=cache, counts=torch.tensor([5, 2, 3]))
    assert cache.next_place() is None
    alone = cache.take(torch.tensor([1, 1]))
    assert alone.next_place() == 2
    hidden = Decoder(net).step(ROWS[[1, 1], 2], alone)
    assert torch.allclose(hidden, net(ROWS[[1, 1]])[:, 2], atol=2e-5)


def test_rows_pause():
    """A row whose id does not count goes on as if it had not come."""
    net = new_net()
    whole = net(ROWS)
    cache, decoder = net.new_cache(3, 7), Decoder(net)
    net(ROWS[:, :4], cache=cache)
    for counts in ([True, True, True], [False, True, True], [True, False, True]):
        going, places = torch.tensor(counts), cache.lengths.clone()
        ids = ROWS.gather(1, places[:, None])[:, 0].where(going, torch.tensor(63))
        hidden = decoder.step(ids, cache, None, going)
        assert torch.allclose(hidden[going], whole[torch.arange(3), places][going], atol=2e-5)
    assert cache.lengths.tolist() == [6, 6, 7]
    with pytest.raises(ValueError, match="holds 7 tokens a row, 8 are needed"):
        decoder.step(ROWS[:, 6], cache)


def test_adapters_take_part():
    net = new_net()
    adapt(net, linear_layers(net), rank=2, scale=0.5)
    for name, weight in net.named_parameters():
        if name.endswith("lora_up"):
            torch.nn.init.normal_(weight, std=0.1)
    compare(net, [3, 3, 3])


def test_a_full_cache_is_refused():
    net = new_net()
    cache = net.new_cache(3, 4)
    net(ROWS[:, :4], cache=cache)
    with pytest.raises(ValueError, match="holds 4 tokens a row, 5 are needed"):
        Decoder(net).step(ROWS[:, 4], cache)
    assert cache.lengths.tolist() == [4, 4, 4]
