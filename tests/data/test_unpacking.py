"""Sets that are not wholly unpacked, or damaged, are named by the file: never a traceback."""

import re

import pytest

from handrec.cli.main import main

#: Layouts that can be written, and the data sets that read them.
SETS = {
    "freihand": "freihand", "ho3d_v2": "ho3d_v2", "ho3d_v3": "ho3d_v3", "coco": "coco_hands",
    "dexycb": "dexycb", "interhand26m": "interhand26m", "rhd": "rhd",
}  # fmt: skip
#: What the suite leaves in sets that it draws.
SIGNATURE = "handrec.json"
#: What published sets may lack, or what nothing reads.
OPTIONAL = re.compile(r"evaluation_[^K]\w+\.json|training_scale|MANO_NeuralAnnot")


def one_of_each(root):
    """Return the first file of each kind: names differ by numbers within one."""
    kinds = {}
    for path in sorted(path for path in root.rglob("*.*") if path.name != SIGNATURE):
        kinds.setdefault(re.sub(r"\d+", "0", str(path.relative_to(root))), path)
    return list(kinds.values())


@pytest.mark.slow
@pytest.mark.parametrize("layout", SETS)
def test_a_file_that_is_gone_or_damaged_is_named(layout, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # contact sheets are written here
    root = tmp_path / layout
    assert main(["data", "synth", f"--format={layout}", f"--out={root}", "--count=8"]) == 0
    check = ["data", "check", SETS[layout], str(root)]
    assert main(check) == 0
    for path in one_of_each(root):
        aside = path.rename(path.with_name(f"{path.name}.aside"))
        for content in (None, b"", b"\x80\x04 no such {"):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            capsys.readouterr()
            status = main(check)
            captured = capsys.readouterr()
            said = captured.out + captured.err
            if not OPTIONAL.search(path.name):
                assert status in (1, 2), f"{path.name}: nothing is wrong with {content!r}"
            if status:
                gone = content is None and path.parent == root  # what its name should be?
                assert (str(root) if gone else path.name) in said
                assert "Traceback" not in said
        aside.replace(path)
