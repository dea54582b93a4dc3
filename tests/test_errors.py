"""One line: what, where, how to fix."""

from multimodal_gpt.errors import UserError, nearest


def test_a_user_error_is_one_line():
    error = UserError("unknown key\n'stps'", "my.yaml: train", "did you mean 'steps'?")
    assert str(error) == "my.yaml: train: unknown key 'stps' (did you mean 'steps'?)"


def test_context_is_put_in_front():
    inner = UserError("holds no notes", "song.mid")
    assert str(inner.within("prepare")) == "prepare: song.mid: holds no notes"


def test_nearest_names_a_likely_one_else_all():
    assert nearest("melodi", ["text", "melody"]) == "did you mean 'melody'?"
    assert nearest("x", ["text", "melody"]) == "known: melody, text"
    assert nearest("x", []) == "none is known"
