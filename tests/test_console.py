"""What is counted is told, also where more comes to light on the way."""

import pytest

from multimodal_gpt.console import Hidden, progress, table


def test_a_count_that_grows_ends_at_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2, "files") as bar:
        bar.advance(1, "first")
        bar.grow(3)
        assert bar.line().startswith("files: 1/5 (20 %)")
        bar.advance(4)
    assert capsys.readouterr().err.splitlines()[-1] == "files: 5/5 (100 %), first"


def test_an_unknown_count_stays_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "steps") as bar:
        bar.grow(3)
        bar.advance(2)
    assert capsys.readouterr().err == "steps: 2\n"


def test_a_hidden_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Hidden(2, "files").advance(2)
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_log_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1000, "files") as bar:
        for _ in range(1000):
            bar.advance(1, note="3 skipped")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "files: 1000/1000 (100 %), 3 skipped\n"


def test_a_table_without_a_terminal_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    table("sizes", ["name", "ids"], [("text", 256), ("x", None), ("[b]", 0.12345)])
    assert capsys.readouterr().out == "sizes\n  name  ids\n  text  256\n  x     -\n  [b]   0.1235\n"
