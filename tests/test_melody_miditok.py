"""The ids of a melody are MidiTok's, and are read as MidiTok reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_melody import PLUGIN, random_melody

from multimodal_gpt.tokenizers import _remi, melody
from multimodal_gpt.tokenizers._music import TICKS, clean_meters

NOTTINGHAM = Path(__file__).resolve().parents[2] / "shared" / "data" / "nottingham" / "midi"


@pytest.fixture(scope="module", params=[12, 24])
def remi(request):
    return _remi.miditok_remi(request.param), melody.build(steps_per_beat=request.param)


def score_of(content: melody.Melody):
    from symusic import Note, Score, TimeSignature, Track

    score = Score(TICKS)
    score.tracks.append(Track(program=0))
    for onset, duration, pitch in content.notes.tolist():
        score.tracks[0].notes.append(Note(onset, duration, pitch, 90))
    for m in content.meters:
        score.time_signatures.append(TimeSignature(m.tick, m.numerator, m.denominator))
    return score


def miditok_ids(tokenizer, content: melody.Melody, plugin: melody.MelodyTokenizer) -> list[int]:
    theirs = tokenizer.encode(score_of(content))[0].ids
    ours = {m: i for i, m in enumerate(_remi.Layout(plugin.steps_per_beat).miditok_ids.tolist())}
    return [ours[i] for i in theirs]


def test_vocabulary_is_miditoks_without_padding_and_drums(remi):
    tokenizer, plugin = remi
    names = {i: name for name, i in tokenizer.vocab.items()}
    ids = _remi.Layout(plugin.steps_per_beat).miditok_ids
    assert len(ids) == plugin.size == len(set(ids.tolist()))
    left_out = set(names) - set(ids.tolist())
    assert {names[i].split("_")[0] for i in left_out} == {"PAD", "PitchDrum"}
    layout = _remi.Layout(plugin.steps_per_beat)
    expected = {0: "Bar_None", layout.pitch + 60: "Pitch_60", layout.position + 7: "Position_7"}
    expected |= {layout.duration: f"Duration_0.1.{layout.steps}", layout.position - 1: "Duration_12.0.4"}
    numerator, denominator = layout.meters[-1]
    expected |= {plugin.size - 1: f"TimeSig_{numerator}/{denominator}"}
    assert {i: names[ids[i]] for i in expected} == expected


@pytest.mark.parametrize("rough", [False, True])
def test_ids_are_miditoks(remi, rough):
    tokenizer, plugin = remi
    compared = 0
    for seed in range(150):
        content = random_melody(seed, rough)
        grid = _remi.quantise(content.notes, content.meters, plugin.steps_per_beat)
        if len(grid.onset) < len(content.notes):
            continue  # two notes on one position: MidiTok keeps both
        compared += 1
        assert plugin.encode(content).tolist() == miditok_ids(tokenizer, content, plugin), seed
    assert compared > 100


def test_ids_of_decoded_walks_are_miditoks(remi):
    tokenizer, plugin = remi
    for seed in range(40):
        walk = plugin.grammar().random_walk(np.random.default_rng(seed), 60)
        content = plugin.decode(plugin.encode(plugin.decode(walk)))
        assert plugin.encode(content).tolist() == miditok_ids(tokenizer, content, plugin), seed


def test_decodes_as_miditok_decodes(remi):
    from miditok import TokSequence

    tokenizer, plugin = remi
    for seed in range(100):
        ids = plugin.encode(random_melody(seed, rough=False))
        theirs = tokenizer.decode(
            [TokSequence(ids=_remi.Layout(plugin.steps_per_beat).miditok_ids[ids].tolist())]
        )
        fields = theirs.tracks[0].notes.numpy()
        got = np.stack([fields["time"], fields["duration"], fields["pitch"]], axis=1).astype(np.int64)
        got[:, :2] = got[:, :2] * TICKS // theirs.ticks_per_quarter
        content = plugin.decode(ids)
        assert content.notes.tolist() == got.tolist()
        signs = [(m.time * TICKS // theirs.tpq, m.numerator, m.denominator) for m in theirs.time_signatures]
        assert content.meters == clean_meters(signs)


@pytest.mark.skipif(not NOTTINGHAM.is_dir(), reason="the Nottingham files are not here")
def test_nottingham_ids_are_miditoks():
    tokenizer = _remi.miditok_remi(12)
    for path in sorted(NOTTINGHAM.glob("valid/*.mid")):
        (item,) = PLUGIN.read(path)
        quantised = PLUGIN.decode(PLUGIN.encode(item.content))
        assert PLUGIN.encode(item.content).tolist() == miditok_ids(tokenizer, quantised, PLUGIN)
        if len(quantised.notes) == len(item.content.notes):
            assert PLUGIN.encode(item.content).tolist() == miditok_ids(tokenizer, item.content, PLUGIN)
