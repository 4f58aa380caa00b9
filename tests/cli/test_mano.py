"""``handrec mano``: what it prints, writes and refuses."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from handrec.cli import mano
from handrec.errors import UserError
from handrec.hand import mano_files
from handrec.hand.mano_files import read_mano
from tests.standins import write_mano_pickle


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser("handrec mano")
    mano.add_arguments(parser)
    return mano.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_mano_pickle(tmp_path / "MANO_LEFT.pkl", "left")


def test_check_shows_arrays_and_warns_of_another_checksum(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", file) == 0
    printed = capsys.readouterr().out
    for text in ("a left hand", "posedirs", "778 x 3 x 135", "handoccnet", "728 ("):
        assert text in printed
    words = " ".join(printed.split())
    assert "warning: not the released file" in words
    assert "11aeaca8631aa20db964d4eba491e885" in words


def test_check_knows_the_release(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mano_files.KNOWN_MD5, "left", mano_files.md5(file))
    assert run("check", file) == 0
    printed = capsys.readouterr().out
    assert "as released" in printed
    assert "warning" not in printed


def test_convert_writes_beside_the_file_or_where_it_is_told(file: Path) -> None:
    assert run("convert", file) == 0
    out = file.parent / "new" / "left.npz"
    assert run("convert", file, "--out", out) == 0
    assert run("check", out) == 0
    for written in (file.with_suffix(".npz"), out):
        np.testing.assert_array_equal(read_mano(written).shapedirs, read_mano(file).shapedirs)


def test_mistakes_are_one_line(file: Path) -> None:
    assert run("convert", file) == 0
    npz = file.with_suffix(".npz")
    text = file.parent / "notes.txt"
    text.write_text("not a hand")
    for words, message in (
        (("check", file.parent / "absent.pkl"), r"absent\.pkl not found"),
        (("check", text), r"notes\.txt is damaged, or not a MANO file"),
        (("convert", file, "--out", "hand.pkl"), r"must end in \.npz"),
        (("convert", npz), r"is an \.npz already"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(*words)
        assert "\n" not in str(caught.value)


def test_an_action_is_needed() -> None:
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
