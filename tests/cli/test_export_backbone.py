from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from handrec.cli.main import main
from handrec.methods.loading import load_method

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


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        ("lightning_logs/long/version_3/checkpoints", "long"),
        ("lightning_logs/named/checkpoints", "named"),
        ("elsewhere", "some"),
    ],
)
def test_without_a_file_it_is_named_after_the_experiment(folder, written, tmp_path, monkeypatch):
    """Not after the default one, whose export may lie there."""
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)
    (Path(folder).parent / "config.yaml").touch()
    if folder == "elsewhere":
        Path("config.yaml").unlink()
    path, _ = checkpoint(Path(folder), "backbone.model.", TINY)
    assert main(["export-backbone", f"--ckpt={path}"]) == 0
    assert [p.name for p in Path("lightning_logs").glob("*.safetensors")] == [
        f"{written}.safetensors"
    ]


def test_a_file_of_another_kind_is_refused(tmp_path, capsys):
    path, _ = checkpoint(tmp_path, "backbone.model.", TINY)
    assert main(["export-backbone", f"--ckpt={path}", f"--out={tmp_path}/t.pth"]) == 2
    assert "what is written is a .safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "t.pth").exists()


def test_a_run_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export-backbone"]) == 2
    assert "no run of 'handmim_pretrain'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fine_tuned_run_outlives_what_it_started_from(tmp_path, monkeypatch, capsys):
    """Evaluated, loaded and gone on with after the export is gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **options)
    start = tmp_path / "start.safetensors"
    save_file(source.state_dict(), start)
    backbone = "--model.init_args.backbone.init_args"
    small = [
        "--exp=handmim_finetune", "--scale=smoke", "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1", f"{backbone}.checkpoint={start}",
        f"{backbone}.image_size=32", f"{backbone}.options={options}",
        "--data.init_args.image_size=32",
    ]  # fmt: skip
    assert main(["fit", *small, "--trainer.max_epochs=1"]) == 0
    start.unlink()
    assert main(["test", "--run=handmim_finetune", "--trainer.limit_test_batches=1"]) == 0
    run = Path("lightning_logs/handmim_finetune/version_0")
    assert load_method(run / "checkpoints" / "last.ckpt").hparams["backbone"]
    assert main(["fit", *small, "--trainer.max_epochs=2", "--resume=1"]) == 0
    assert str(start) in (run / "config.yaml").read_text()
    assert main(["fit", *small]) == 2  # a new training does want it
    assert "not found" in capsys.readouterr().err
