import pytest

from handrec.callbacks.summary import typed


@pytest.mark.parametrize("on_path", [False, True])
def test_commands_are_told_as_they_can_be_typed(tmp_path, monkeypatch, on_path):
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "handrec"):
        (programs / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(programs) if on_path else "")
    wanted = "handrec" if on_path else ".venv/bin/handrec"
    assert typed("handrec export-backbone NAME") == f"{wanted} export-backbone NAME"
    assert typed("make eval EXP=NAME") == "make eval EXP=NAME"
