import pytest
import timm
import torch
from safetensors.torch import load_file

from handrec.cli.main import main

TINY = {
    "_class_path": "handrec.methods.handmim_pretrain.HandMIMPretrain",
    "backbone": {"class_path": "TimmBackbone", "init_args": {"name": "vit_tiny_patch16_224"}},
}


def checkpoint(folder, prefix, hyper):
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=0)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    path = folder / "some.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": hyper}, path)
    return path, model.state_dict()


@pytest.mark.parametrize("prefix", ["teacher.backbone.model.", "backbone.model."])
def test_timm_loads_what_is_written(prefix, tmp_path, capsys):
    path, state = checkpoint(tmp_path, prefix, TINY)
    out = tmp_path / "backbone.safetensors"
    assert main(["export-backbone", f"--ckpt={path}", f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    loaded = timm.create_model(
        "vit_tiny_patch16_224", depth=1, img_size=64, num_classes=0, checkpoint_path=str(out)
    )
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())


def test_the_teacher_is_written_unless_the_student_is_asked_for(tmp_path):
    content = {
        "teacher.backbone.model.w": torch.zeros(1),
        "student.backbone.model.w": torch.ones(1),
    }
    path, out = tmp_path / "both.ckpt", tmp_path / "out.safetensors"
    torch.save({"state_dict": content, "hyper_parameters": {}}, path)
    main(["export-backbone", f"--ckpt={path}", f"--out={out}"])
    assert load_file(out)["w"].item() == 0
    main(["export-backbone", f"--ckpt={path}", f"--out={out}", "--branch=student"])
    assert load_file(out)["w"].item() == 1


def test_a_checkpoint_without_a_backbone_is_refused(tmp_path, capsys):
    path, _ = checkpoint(tmp_path, "other.", {})
    assert main(["export-backbone", f"--ckpt={path}"]) == 2
    assert "holds no backbone" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export-backbone"]) == 2
    assert "no run of 'handmim_pretrain'" in capsys.readouterr().err
