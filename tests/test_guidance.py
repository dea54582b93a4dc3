"""What takes turns with a target guides it: the unguided stream is that of what is wanted alone."""

import pytest
import torch
from test_engine import PROMPT, ids, new_engine, rows
from test_walker import LAYOUTS, MEMBERS, VOCABULARY, check, known

from multimodal_gpt.generation.engine import Engine, Row
from multimodal_gpt.generation.memory import Recomputed
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.target import Target
from multimodal_gpt.stream.arrangement import Layout, from_stream, to_stream
from multimodal_gpt.stream.vocabulary import DOC, END, Encoded

TURNING = [(order, wanted) for order, wanted in LAYOUTS if len(wanted) < len(order)]
UNGUIDED = Sampling(temperature=0.0, guidance=0.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Nothing ends before it must."""
    engine = new_engine()
    with torch.no_grad():
        engine.net.embedding.weight[:, 0] = 1
        engine.net.embedding.weight[END] = 0
        engine.net.embedding.weight[END, 0] = -1000
    return engine


def encoded(name: str, local) -> Encoded:
    tokenizer = VOCABULARY.tokenizer(name)
    return Encoded(name, local, tokenizer.clock(local), tokenizer.cuts(local), 1)


# By default every second layout with a clock, and the others without.
CLOCKED = [
    pytest.param(*layout, clock, marks=[pytest.mark.slow] if (number + bool(clock)) % 2 else [])
    for number, layout in enumerate(TURNING)
    for clock in (0.0, 0.5)
]


@pytest.mark.parametrize(("order", "wanted", "clock"), CLOCKED)
def test_guided_rows_are_legal_and_need_no_cache(order, wanted, clock):
    engine, asked = new_engine(clock=clock), rows(order, wanted, count=4)
    how = Sampling(3.0, guidance=3.0)
    made = engine.generate(asked, how)
    assert ids(made) == ids(engine.generate(asked, how, cached=False))
    assert ids(made)[1] == ids(engine.generate(asked[1:2], how))[0]
    for one, row in zip(made, asked, strict=True):
        check(one.ids, row.target, row.budget)


@pytest.mark.parametrize(("order", "wanted"), TURNING)
def test_the_unguided_stream(engine, order, wanted, monkeypatch):
    held: list[list[int]] = []
    real = Recomputed.add

    def listen(self, ids, times, going, *, pauses=False):
        real(self, ids, times, going, pauses=pauses)
        if pauses:
            held.append(self.ids[0, : int(self.counts[0])].tolist())

    monkeypatch.setattr(Recomputed, "add", listen)
    (row,) = rows(order, wanted, count=1)
    (made,) = engine.generate([row], Sampling(3.0, guidance=2.0), cached=False)
    if len(wanted) == 1:  # as training lays it out, but for <end> and <eod>, which nothing follows
        alone = {wanted[0]: encoded(wanted[0], from_stream(VOCABULARY, made.ids)[wanted[0]])}
        expected = to_stream(VOCABULARY, alone, Layout((tuple(wanted),))).ids.tolist()[:-2]
    else:
        (given,) = (MEMBERS[name] for name in order if name not in wanted)
        kept = [i for i in made.ids.tolist() if not given.tag <= i < given.first + given.grammar.size]
        expected = [DOC, *kept[:-1]]
    assert held[-1] == expected


@pytest.mark.parametrize("order", [("beats", "drums"), ("drums", "beats"), ("letters", "drums", "beats")])
def test_without_any_weight_it_is_made_as_if_alone(engine, order):
    """Chunk by chunk: what would begin the next one leads out of this one."""
    given = {name: known(name, 3, 9) for name in order if name != "beats"}
    count = len(given["drums"].edges) - 1
    rows = [Row(PROMPT, Target(order, given), 90), Row(PROMPT, Target(("beats",), chunks=count), 90)]
    beside, alone = (engine.generate([row], UNGUIDED)[0].ids for row in rows)
    found, expected = (from_stream(VOCABULARY, one)["beats"].tolist() for one in (beside, alone))
    assert found == expected and count > 1
    told = from_stream(VOCABULARY, engine.generate(rows[:1], Sampling(temperature=0.0))[0].ids)
    assert told["beats"].tolist() != expected


def test_without_any_weight_two_are_made_as_if_alone(engine):
    given = {"letters": known("letters", 1, 5)}
    rows = [
        Row(PROMPT, Target(order, g), 90)
        for order, g in [(("letters", "beats", "drums"), given), (("beats", "drums"), {})]
    ]
    beside, alone = (from_stream(VOCABULARY, engine.generate([row], UNGUIDED)[0].ids) for row in rows)
    for name in ("beats", "drums"):
        assert beside[name].tolist()[:12] == alone[name].tolist()[:12]
    assert MEMBERS["letters"].tag in engine.generate(rows[:1], UNGUIDED)[0].ids
