"""Running `mmgpt` as a user does, in the process of the test."""

from __future__ import annotations

import pytest

from multimodal_gpt.cli import main


def mmgpt(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return int(leaving.value.code or 0), told.out, told.err
