"""Tags: one spelling per value, unknown values become "other", mistakes are named with the nearest name."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.testing import check_tokenizer
from multimodal_gpt.tokenizers import tags

TAGS = tags.build({**tags.FIELDS, "type": ["jig", "reel", "slip jig"]})
JIG = {"type": "jig", "key": "D major", "meter": "6/8", "tempo": "fast", "bars": "32"}
contents = st.fixed_dictionaries({}, optional={f: st.sampled_from(v) for f, v in TAGS.fields.items()}).filter(
    bool
)


@given(contents)
def test_tags_come_back(content):
    ids = TAGS.encode(content)
    assert TAGS.decode(ids) == content
    assert TAGS.units(content) == len(ids)
    assert TAGS.parse(TAGS.show(ids)) == content


@given(
    st.dictionaries(st.sampled_from(list(TAGS.fields)), st.text() | st.integers() | st.floats(), min_size=1)
)
def test_any_value_encodes(content):
    ids = TAGS.encode(content)
    assert TAGS.grammar().accepts(ids)
    assert np.array_equal(TAGS.encode(TAGS.decode(ids)), ids)


@given(contents, st.integers(-30, 30))
def test_shift_moves_the_key_and_back(content, steps):
    assert TAGS.shift(TAGS.shift(content, steps), -steps) == content


@pytest.mark.parametrize(
    ("field", "value", "spelt"),
    [
        ("key", "Dmaj", "D major"),
        ("key", "F#m", "F# minor"),
        ("key", "E dorian", "E minor"),
        ("key", "C# major", "Db major"),
        ("meter", "C", "4/4"),
        ("meter", "2/2", "4/4"),
        ("meter", "06/8", "6/8"),
        ("tempo", 59.9, "very slow"),
        ("tempo", 60, "slow"),
        ("tempo", "116 bpm", "fast"),
        ("tempo", 152.0, "very fast"),
        ("tempo", "Very  Slow", "very slow"),
        ("bars", 64, "64"),
        ("bars", "65", "65-128"),
        ("bars", 129, "129+"),
        ("bars", 0, "0"),
        ("type", " Slip  Jig ", "slip jig"),
    ],
)
def test_one_spelling_per_value(field, value, spelt):
    assert tags.spell(field, value) == spelt
    assert tags.spell(field, spelt) == spelt


def test_values_in_no_list_become_other():
    content = {"type": "mazurka", "key": "H dur", "meter": "free", "tempo": "brisk", "bars": "0"}
    assert set(TAGS.decode(TAGS.encode(content)).values()) == {"other"}


def test_compose_takes_what_is_known():
    known = {
        "title": "x",
        "key": "Edor",
        "mode": "dorian",
        "tempo": 120.0,
        "bars": 16,
        "meter": "",
        "type": ["jig"],
    }
    assert TAGS.compose(known) == {"key": "E minor", "mode": "dorian", "tempo": "fast", "bars": "16"}
    assert TAGS.compose({"title": "x"}) is None


def test_parse_as_typed():
    assert TAGS.parse("key=D meter=6/8, type = slip jig; tempo=138") == {
        "key": "D major",
        "meter": "6/8",
        "type": "slip jig",
        "tempo": "fast",
    }


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("kye=D", "unknown field 'kye' .did you mean 'key'?"),
        ("type=jigg", "unknown type 'jigg' .did you mean 'jig'?"),
        ("key=H", "unknown key 'H' .known: A major, A minor"),
        ("a jig", "'a jig' is not field=value .example: key=D major"),
        ("key= meter=6/8", "field 'key' has no value"),
        ("", "is not field=value"),
    ],
)
def test_mistakes_are_named(typed, message):
    with pytest.raises(UserError, match=message):
        TAGS.parse(typed)


def test_a_field_still_to_be_learnt_takes_any_value():
    assert tags.build().parse("type=mazurka") == {"type": "mazurka"}


def test_files(tmp_path):
    path = TAGS.write(JIG, tmp_path / "x.tags")
    assert path.read_text().splitlines()[:2] == ["type=jig", "key=D major"]
    assert [i.content for i in TAGS.read(path)] == [JIG]
    assert TAGS.parse(str(path)) == JIG
    path.write_text("\ntype = Hornpipe \n")
    assert [i.content for i in TAGS.read(path)] == [{"type": "hornpipe"}]
    path.write_text("\n")
    assert list(TAGS.read(path)) == []
    for wrong, message in (("jig", "line 1 is not field=value: 'jig'"), ("kind=jig", "unknown field 'kind'")):
        path.write_text(wrong)
        with pytest.raises(UserError, match=message):
            list(TAGS.read(path))


def test_learns_frequent_values(tmp_path):
    documents = [{"type": "Jig"}] * 5 + [{"type": "reel"}] * 6 + [{"type": "mazurka", "key": "D"}] * 4
    modality = plugins.fit(Modality("tags", "tags"), iter(documents), tmp_path)
    assert modality.options["fields"]["type"] == ["jig", "reel"]
    assert modality.options["fields"]["key"][:2] == ["Db major", "Ab major"]
    tokenizer = plugins.build(modality, tmp_path)
    assert tokenizer.fields["type"] == ("jig", "reel", "other")
    assert tokenizer.decode(tokenizer.encode({"type": "mazurka"})) == {"type": "other"}
    assert plugins.fit(modality, [], tmp_path) == modality


def test_own_fields():
    tokenizer = tags.build({"bars": [8, 16, "8"], "mood": ["Happy", "sad"], "key": ["D major"]})
    assert tokenizer.fields == {
        "bars": ("8", "16", "other"),
        "mood": ("happy", "sad", "other"),
        "key": ("D major", "other"),
    }
    assert tokenizer.shift({"key": "D major"}, 1) is None
    assert tokenizer.shift({"mood": "sad"}, 1) == {"mood": "sad"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mood": "known"},
            r"fields\.mood: the values are 'known' .give a list, or learn, or known .for key, mode",
        ),
        ({"mood": 3}, "the values are 3"),
        ({"my mood": ["sad"]}, "field 'my mood' is not one word"),
        (["key"], r"fields is \['key'\]"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        tags.build(fields)


def test_order_and_repeats_are_refused():
    ids = TAGS.encode(JIG)
    for wrong in (ids[::-1], ids[[0, 0]], []):
        with pytest.raises(UserError, match="these ids are no tags"):
            TAGS.decode(wrong)


def test_described_by_what_it_says():
    assert TAGS.describe({"type": "other", "key": "Dm"}) == {"key": "D minor"}
    assert pickle.loads(pickle.dumps(TAGS)).fields == TAGS.fields


def test_keeps_the_contract():
    assert {"shift", "compose", "spawn"} <= set(check_tokenizer("tags", samples=[JIG] * 5).passed)
