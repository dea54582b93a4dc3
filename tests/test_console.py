"""What is counted is told, also where more comes to light on the way."""

from multimodal_gpt.console import Hidden, progress


def test_a_count_that_grows_ends_at_all_of_it(capsys):
    with progress(2, "files") as bar:
        bar.advance(1, "first")
        bar.grow(3)
        assert bar.line().startswith("files: 1/5 (20 %)")
        bar.advance(4)
    assert capsys.readouterr().err.splitlines()[-1] == "files: 5/5 (100 %), first"


def test_an_unknown_count_stays_unknown(capsys):
    with progress(None, "steps") as bar:
        bar.grow(3)
        bar.advance(2)
    assert capsys.readouterr().err == "steps: 2\n"


def test_a_hidden_one_says_nothing(capsys):
    Hidden(2, "files").advance(2)
    assert capsys.readouterr() == ("", "")
