"""The engine: the same ids with and without a cache, alone and in a batch."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_walker import LAYOUTS, MEMBERS, VOCABULARY, check, target

from multimodal_gpt.generation.clock import Clock
from multimodal_gpt.generation.engine import Engine, Row
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.target import Target
from multimodal_gpt.generation.walker import Plan
from multimodal_gpt.model.gpt import GPT, GPTConfig
from multimodal_gpt.stream.arrangement import Stream, from_stream
from multimodal_gpt.stream.vocabulary import DOC, END

BOLD = Sampling(temperature=5.0)
SHAPE = {"depth": 2, "width": 32, "heads": 2, "kv_heads": 1, "mlp_hidden": 64, "context": 96}
BUDGET = 45


def new_engine(**options) -> Engine:
    torch.manual_seed(0)
    net = GPT(GPTConfig(VOCABULARY.table_size, **SHAPE, **options))
    torch.nn.init.normal_(net.embedding.weight, std=0.2)  # logits that matter
    return Engine(net.eval(), MEMBERS)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine()


def prompt(*ids: int) -> Stream:
    return Stream(np.array([DOC, *ids]), np.zeros(1 + len(ids), dtype=np.float32))


PROMPT = prompt()


def rows(order, wanted, count: int = 5, seed: int = 0) -> list[Row]:
    """Prompts and given segments of different lengths."""
    return [
        Row(
            prompt(*[MEMBERS["letters"].first + i % 5 for i in range(i * 3)]),
            target(order, wanted, seed + i, 3 + 2 * i),
            budget=BUDGET + i,
            key=(seed, i),
        )
        for i in range(count)
    ]


def own_times(made: np.ndarray) -> list[float]:
    """Every id's time in its own segment, 0 for specials and tags."""
    times = np.zeros(len(made), dtype=np.float32)
    for name, local in from_stream(VOCABULARY, made).items():
        member = MEMBERS[name]
        clock = VOCABULARY.tokenizer(name).clock(local)
        if clock is not None:
            times[(made >= member.first) & (made < member.first + member.grammar.size)] = clock
    return times.tolist()


def ids(made) -> list[list[int]]:
    return [m.ids.tolist() for m in made]


@pytest.mark.parametrize(("order", "wanted"), LAYOUTS)
def test_cached_decoding_is_uncached_decoding(engine, order, wanted):
    asked = rows(order, wanted)
    with_cache = engine.generate(asked)
    assert ids(with_cache) == ids(engine.generate(asked, cached=False))
    for made, row in zip(with_cache, asked, strict=True):
        check(made.ids, row.target, row.budget)


@pytest.mark.parametrize("follows", [True, False], ids=["follow", "clock"])
@pytest.mark.parametrize(
    ("order", "wanted"), [(("beats",), ["beats"]), (("letters", "beats", "drums"), ["drums"])]
)
def test_a_network_with_a_clock_hears_the_times_of_training(order, wanted, follows, monkeypatch):
    """The clock of what is made step by step is the clock of the whole part as training lays it out."""
    engine = new_engine(clock=0.5)
    if not follows:
        members = {name: replace(member, follow=None) for name, member in MEMBERS.items()}
        engine = Engine(engine.net, members)
    asked = rows(order, wanted)
    heard = [[] for _ in asked]
    real = Clock.times

    def listen(self, walker, ids):
        times = real(self, walker, ids)
        for row, time in enumerate(times.tolist()):
            heard[row].append(time)
        return times

    monkeypatch.setattr(Clock, "times", listen)
    monkeypatch.setattr("multimodal_gpt.generation.engine.SHRINK", 0.0)
    made = engine.generate(asked)
    for one, row, times in zip(made, asked, heard, strict=True):
        start = len(Plan(engine.rules, [row.target], [row.budget]).programs[0].prefix.ids)
        assert times[: len(one.ids) - start] == own_times(one.ids)[start:]
    assert ids(made) == ids(engine.generate(asked, cached=False))


@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(temperature=0.0), Sampling(top_k=3, top_p=0.9, min_p=0.05)]
)
def test_a_row_alone_is_the_row_in_a_batch(engine, how):
    asked = rows(("beats", "drums"), ["drums"])
    assert ids(engine.generate(asked, how)) == [ids(engine.generate([row], how))[0] for row in asked]


def test_same_key_same_ids_and_other_keys_other_ids(engine):
    asked = [Row(PROMPT, Target(("letters",)), 40, (3, i)) for i in range(8)]
    first = ids(engine.generate(asked))
    assert ids(engine.generate(asked[::-1])) == first[::-1]
    assert len({tuple(row) for row in first}) > 4


def uneven(count: int) -> list[Row]:
    """Some end soon and some late; some prompts are equal, and all lead away from a longer one."""
    budgets = [45, 8, 25, 12, 9, 40, 8]
    prompts = [prompt(*[MEMBERS["letters"].first + i % 5 for i in range(n)]) for n in (2, 9, 0)]
    return [
        Row(prompts[i // 2 % 3], Target(("beats", "drums")), budgets[i % 7], (i,), unguided=PROMPT)
        for i in range(count)
    ]


@pytest.mark.parametrize("clock", [0.0, 0.5])
@pytest.mark.parametrize(
    "how",
    [BOLD, Sampling(guidance=2.0), Sampling(repetition_penalty=1.5, no_repeat=2)],
    ids=["plain", "guided", "unlike"],
)
def test_rows_that_take_the_places_of_others(how, clock, monkeypatch):
    """Whoever was there before, and whoever is beside them."""
    engine, asked = new_engine(clock=clock), uneven(8)
    alone = [engine.generate([row], how)[0] for row in asked]
    assert len({len(made.ids) for made in alone}) > 4
    monkeypatch.setattr("multimodal_gpt.generation.engine.ROWS", 3)
    for cached in (True, False):
        made = engine.generate(asked, how, cached=cached)
        assert ids(made) == ids(alone)
        assert [m.free for m in made] == [m.free for m in alone]
        for one, other in zip(made, alone, strict=True):
            assert one.bits == pytest.approx(other.bits, rel=1e-4)
    for one, row in zip(made, asked, strict=True):
        check(one.ids, row.target, row.budget)


def test_finished_rows_are_told_as_they_finish(engine, monkeypatch):
    monkeypatch.setattr("multimodal_gpt.generation.engine.ROWS", 3)
    finished: list[int] = []
    engine.generate(uneven(9), BOLD, progress=finished.append)
    assert sum(finished) == 9 and len(finished) >= 6 and min(finished) >= 1


def test_equal_prompts_are_read_once(engine, monkeypatch):
    """Of rows that begin together, and of those that follow one another."""
    read: list[tuple[int, ...]] = []
    real = GPT.forward

    def listen(self, ids, **rest):
        read.append(tuple(ids.shape))
        return real(self, ids, **rest)

    monkeypatch.setattr(GPT, "forward", listen)
    monkeypatch.setattr("multimodal_gpt.generation.engine.ROWS", 2)
    first, then = prompt(7, 8, 9), prompt(9)
    asked = [Row(one, Target(("letters",)), 12, (i,)) for i, one in enumerate([first] * 6 + [then] * 4)]
    engine.generate(asked)
    assert read == [(1, 5), (1, 3)]


def test_no_row_is_begun_before_all_are_checked(engine, monkeypatch):
    monkeypatch.setattr("multimodal_gpt.generation.engine.ROWS", 1)
    asked = [Row(PROMPT, Target(("beats",)), budget) for budget in (20, 3)]
    finished: list[int] = []
    with pytest.raises(ValueError, match="row 1 needs 4 tokens, its budget is 3"):
        engine.generate(asked, progress=finished.append)
    assert not finished and engine.generate([]) == []


def test_temperature_by_modality(engine):
    """With one modality at temperature 0, its ids depend on no random number."""
    asked = [Row(PROMPT, Target(("beats", "drums")), 60, (i,)) for i in range(6)]
    cold = {
        len({tuple(row) for row in ids(engine.generate(asked, Sampling(temperature=t)))})
        for t in (0.0, {"beats": 0, "drums": 0})
    }
    assert cold == {1}
    assert len({tuple(row) for row in ids(engine.generate(asked, Sampling(temperature={"beats": 0.0})))}) > 1


def test_bits_and_free_ids(engine):
    """Three ids may follow one another here; the first is forced by the budget."""
    (made,) = engine.generate([Row(PROMPT, Target(("letters",)), 3)])
    letters = MEMBERS["letters"]
    assert made.ids[0] == letters.tag and made.ids[2] == END and made.free == 1
    with torch.no_grad():
        logits = engine.net.logits(engine.net(torch.tensor([[DOC, letters.tag]]))[0, -1])
    chances = logits[letters.first : letters.first + 5].log_softmax(-1)
    expected = -chances[int(made.ids[1]) - letters.first] / np.log(2)
    assert made.bits["letters"] == pytest.approx(float(expected), rel=1e-5)


def test_a_budget_that_no_walk_keeps(engine):
    assert engine.least(Target(("beats",))) == 4
    with pytest.raises(ValueError, match="row 0 needs 4 tokens, its budget is 3"):
        engine.generate([Row(PROMPT, Target(("beats",)), 3)])


def test_nothing_is_kept_for_gradients(engine):
    engine.generate(rows(("beats",), ["beats"], count=2))
    assert all(p.grad is None for p in engine.net.parameters())


def walks(engine: Engine, count: int, how: Sampling = BOLD) -> None:
    for number, (order, wanted) in enumerate(LAYOUTS):
        asked = rows(order, wanted, count, seed=100 * number)
        for made, row in zip(engine.generate(asked, how), asked, strict=True):
            check(made.ids, row.target, row.budget)


def test_an_untrained_model_is_legal(engine):
    walks(engine, 4)


@pytest.mark.parametrize("n", [1, 3])
def test_an_untrained_model_that_may_not_repeat_itself_is_legal(engine, n):
    """One id never twice leaves nothing after a few: then any may come."""
    walks(engine, 3, Sampling(temperature=5.0, repetition_penalty=3.0, repetition_window=5, no_repeat=n))


def test_repeats_are_held_back(engine):
    """Greedy, a network without training goes round in circles; given ids and tags are no repeats."""
    asked = rows(("letters", "beats", "drums"), ["beats", "drums"])
    plain = engine.generate(asked, Sampling(temperature=0.0))
    for how in (Sampling(0.0, no_repeat=4), Sampling(0.0, repetition_penalty=2.0)):
        assert ids(engine.generate(asked, how)) != ids(plain)
    letters, count = Row(PROMPT, Target(("letters",)), 60), MEMBERS["letters"].grammar.size
    (made,) = engine.generate([letters], Sampling(3.0, no_repeat=2))
    pairs = list(pairwise(made.ids[1:-1].tolist()))
    assert len(set(pairs)) == len(pairs) > count
    assert made.bits == engine.generate([letters], Sampling(3.0, no_repeat=2))[0].bits


@pytest.mark.slow
def test_an_untrained_model_is_legal_a_thousand_times(engine):
    for seed in range(40):
        torch.manual_seed(seed)
        torch.nn.init.normal_(engine.net.embedding.weight, std=0.2)
        walks(engine, 5)
