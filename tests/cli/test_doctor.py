"""``handrec doctor``: finds what is there, names what is not, and fails only for the essential."""

import argparse
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from handrec.cli import doctor
from handrec.cli.doctor import Finding
from handrec.types import Camera, Rendering
from tests.standins import write_mano_pickle


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a home with nothing in them, and no settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HANDREC_MANO", "HANDREC_DATA", "NETRC", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def by_name(findings: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}  # type: ignore[attr-defined]


def run() -> int:
    parser = argparse.ArgumentParser("handrec doctor")
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args([]))


def test_machine_names_versions() -> None:
    found = by_name(doctor.machine())
    assert found["PyTorch"].state == "ok"
    assert torch.__version__ in found["PyTorch"].detail
    assert (found["CUDA"].state == "ok") == torch.cuda.is_available()


def test_packages_against_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"present": "1.5", "old": "0.9"}
    needs = ["present>=1,<2", "old>=1", "absent==3", "other>=1; extra == 'dev'"]

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "requires", lambda _: needs)
    monkeypatch.setattr(metadata, "version", version)
    found = by_name(doctor.packages())
    states = {name: finding.state for name, finding in found.items()}
    assert states == {"present": "ok", "old": "note", "absent": "broken"}
    assert found["absent"].remedy == 'pip install "absent==3"'
    assert found["old"].detail == "0.9, checked with >=1"


def test_not_installed_as_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert by_name(doctor.packages())["handrec"].state == "note"


class FakeRasterizer(torch.nn.Module):
    """Draws the left or the right triangle, by whether ``right`` was asked for."""

    right = True

    def render(self, vertices: torch.Tensor, *arguments: object) -> Rendering:
        camera = next(a for a in arguments if isinstance(a, Camera))
        mask = torch.zeros(1, 1, *camera.image_size)
        mask[0, 0, 4, 4] = 1 if self.right else 0
        mask = mask + (vertices[:, 2, 1] - vertices[:, 2, 1].detach())
        return Rendering(mask, mask, mask, mask.long()[:, 0])


def test_a_backend_that_fails_is_named_and_the_others_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_cuda", lambda: False)
    monkeypatch.setattr(
        doctor, "RASTERIZERS", {"good": (__name__, "FakeRasterizer"), "bad": ("no.such", "X")}
    )
    found = by_name(doctor.rasterizers())
    assert found["good on cpu"].state == "ok"
    assert found["bad on cpu"].state == "note"
    assert found["bad on cpu"].detail.startswith("not available: ModuleNotFoundError")
    assert "rasterizer" not in found
    monkeypatch.setattr(FakeRasterizer, "right", False)
    found = by_name(doctor.rasterizers())
    assert "wrong triangle" in found["good on cpu"].detail
    assert found["rasterizer"].state == "broken"


def test_the_suites_rasterizers_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cuda", lambda: False)
    found = by_name(doctor.rasterizers())
    for name, (module, _) in doctor.RASTERIZERS.items():
        importlib.import_module(module)
        assert found[f"{name} on cpu"] == Finding("ok", f"{name} on cpu", "draws")


def test_files_that_are_there_and_not(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_name(doctor.files())
    assert "mano.is.tue.mpg.de" in found["MANO, right"].remedy
    assert "HANDREC_DATA" in found["data sets"].detail
    write_mano_pickle(empty_place / "mine" / "MANO_RIGHT.pkl")
    (empty_place / "data" / "HO3D_v2").mkdir(parents=True)
    monkeypatch.setenv("HANDREC_MANO", str(empty_place / "mine"))
    monkeypatch.setenv("HANDREC_DATA", str(empty_place / "data"))
    found = by_name(doctor.files())
    assert {name: finding.state for name, finding in found.items()} == {
        "MANO, right": "ok",
        "MANO, left": "note",
        "data sets": "ok",
    }
    assert found["data sets"].detail.startswith("HO3D_v2 in ")


def test_wandb_key_is_found_without_the_network(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the doctor used the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    assert by_name(doctor.logging())["W&B"].detail == "not logged in"
    (empty_place / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    assert by_name(doctor.logging())["W&B"].state == "ok"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert by_name(doctor.logging())["W&B"].detail == "offline, as WANDB_MODE says"


def test_unwritable_runs_are_broken(empty_place: Path) -> None:
    assert by_name(doctor.logging())["runs"].state == "ok"
    assert not list(empty_place.iterdir())  # and it left nothing behind
    (empty_place / "lightning_logs").write_text("a file where a folder should be")
    assert by_name(doctor.logging())["runs"].state == "broken"


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("note", 0), ("broken", 1)])
def test_exit_status_and_remedies(
    state: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding(state, "thing [a]", "found [/b]", "do [c]")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "EXAMINATIONS", {"Title": lambda: iter([finding])})
    assert run() == status
    printed = capsys.readouterr().out
    assert "thing [a]: found [/b]" in printed
    assert "-> do [c]" in printed
    assert ("Ready to run." in printed) == (status == 0)


def test_a_failing_examination_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> object:
        yield Finding("ok", "first", "fine")
        raise ImportError("no such\nlibrary")

    good = Finding("ok", "last", "fine")
    monkeypatch.setattr(doctor, "EXAMINATIONS", {"A": fails, "B": lambda: iter([good])})
    assert run() == 1
    printed = capsys.readouterr().out
    for text in ("first: fine", "A: ImportError: no such library", "last: fine"):
        assert text in printed


def test_importing_the_tools_is_cheap() -> None:
    """Help must not wait for torch."""
    code = "import sys, handrec.cli.doctor, handrec.cli.mano; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
