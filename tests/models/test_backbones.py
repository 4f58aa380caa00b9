import argparse
import pathlib
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from handrec.errors import UserError
from handrec.models.backbones import TimmBackbone
from handrec.models.weights import replaced_weights

TINY = {"name": "vit_tiny_patch16_224", "options": {"depth": 1}}


@pytest.mark.parametrize(
    ("arguments", "size", "cells"),
    [
        (TINY, 64, 4),
        (TINY, 96, 6),
        ({**TINY, "stem": "conv"}, 64, 4),
        ({"name": "vit_tiny_patch16_224", "options": {"depth": 1, "patch_size": 8}}, 64, 8),
        ({"name": "resnet18"}, 64, 2),
        ({"name": "convnext_atto"}, 64, 2),
    ],
)
def test_any_timm_model_at_any_size(arguments, size, cells):
    backbone = TimmBackbone(image_size=64, **arguments).eval()
    features = backbone.encode(torch.rand(2, 3, size, size))
    assert features.grid.shape == (2, backbone.channels, cells, cells)
    assert features.pooled.shape == (2, backbone.channels)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_grid_cells_lie_where_their_patches_are(stem):
    """With no block that mixes tokens, a changed corner of the image changes that cell most."""
    torch.manual_seed(0)
    backbone = TimmBackbone("vit_tiny_patch16_224", 64, stem=stem, options={"depth": 0}).eval()
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[..., :16, 48:] = 0  # top right
    difference = (backbone.encode(changed).grid - backbone.encode(image).grid).norm(dim=1)[0]
    assert difference.argmax() == 3


def test_conv_stem_offers_the_maps_on_its_way():
    backbone = TimmBackbone(image_size=64, stem="conv", **TINY).eval()
    fine = backbone.encode(torch.rand(2, 3, 64, 64)).fine
    shapes = [tuple(maps.shape[1:]) for maps in fine]
    assert shapes == [
        (channels, size, size)
        for channels, size in zip(backbone.fine_channels, (8, 16, 32), strict=True)
    ]


def test_pooled_is_the_class_token():
    backbone = TimmBackbone(image_size=64, **TINY).eval()
    image = torch.rand(1, 3, 64, 64)
    normalised = (image - 0.5) / 0.5
    torch.testing.assert_close(
        backbone.encode(image).pooled, backbone.model.forward_features(normalised)[:, 0]
    )


def test_the_tag_of_foreign_weights_says_how_images_are_normalised():
    own, foreign = (TimmBackbone(f"vit_small_patch16_224{tag}", 32) for tag in ("", ".dino"))
    assert own.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert foreign.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_pooled_is_the_mean_of_the_patches_where_there_are_registers_alone():
    backbone = TimmBackbone("vit_wee_patch16_reg1_gap_256", 64, options={"depth": 1}).eval()
    features = backbone.encode(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(features.pooled, features.grid.mean((2, 3)))


def test_checkpoint_of_timm_loads_at_another_size_without_its_classifier(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=224)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    for name in ("vit.safetensors", "vit.pth"):
        backbone = TimmBackbone(image_size=64, checkpoint=str(tmp_path / name), **TINY)
        torch.testing.assert_close(
            backbone.model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight
        )
        assert backbone.model.pos_embed.shape[1] == 17


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "convnext_atto"])
def test_classifiers_of_other_families_are_left_out_too(name, tmp_path):
    """EfficientNet's name is that of MobileNet: ``classifier``."""
    source = timm.create_model(name)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    backbone = TimmBackbone(name, 64, checkpoint=str(tmp_path / "weights.safetensors"))
    own, theirs = backbone.model.state_dict(), source.state_dict()
    assert own.keys() <= theirs.keys()
    assert all(value.equal(theirs[key]) for key, value in own.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_tinny"}, "timm has no model 'vit_tinny'"),
        ({"name": "resnet18", "stem": "conv"}, "resnet18 is none"),
        ({**TINY, "checkpoint": "nowhere.pth"}, "not found: nowhere.pth"),
        (
            {"name": "vit_tiny_patch16_224", "stem": "conv", "options": {"patch_size": 14}},
            "power of 2",
        ),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        TimmBackbone(image_size=112, **arguments)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_images_that_patches_do_not_tile_are_refused(stem):
    """A conv stem would leave the last pixels out."""
    backbone = TimmBackbone(image_size=96, stem=stem, **TINY)
    with pytest.raises(UserError, match="16 px do not tile images of 100 x 96 px: give data"):
        backbone.encode(torch.rand(1, 3, 96, 100))


def test_image_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(UserError, match="image_size 65 is no multiple"):
        TimmBackbone(image_size=65, **TINY)


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    save_file({"nothing.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"does not fit the backbone: \d+ parameters missing"):
        TimmBackbone("resnet18", checkpoint=str(tmp_path / "other.safetensors"))


def test_a_run_s_checkpoint_is_no_backbone_s(tmp_path):
    save_file({"student.backbone.model.cls_token": torch.zeros(1)}, tmp_path / "last.safetensors")
    with pytest.raises(UserError, match=r"of a run `handrec export-backbone` writes the backbone"):
        TimmBackbone(checkpoint=str(tmp_path / "last.safetensors"), **TINY)


def test_patches_for_another_stem_are_named_as_they_are_in_the_file(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_file(source.state_dict(), tmp_path / "patches.safetensors")
    with pytest.raises(UserError, match=r"is \(192, 3, 16, 16\) there"):
        TimmBackbone(stem="conv", checkpoint=str(tmp_path / "patches.safetensors"), **TINY)


def test_a_checkpoint_of_another_width_names_both_shapes(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=96)
    save_file(source.state_dict(), tmp_path / "narrow.safetensors")
    said = r"another architecture: cls_token is \(1, 1, 96\) there, \(1, 1, 192\) in the backbone"
    with pytest.raises(UserError, match=said):
        TimmBackbone(checkpoint=str(tmp_path / "narrow.safetensors"), **TINY)


def pickled(path):
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))


def cut(path):
    """Write half of a file."""
    state = {"weight": torch.zeros(64)}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.safetensors", cut, r"cannot read .* \(SafetensorError: .*damaged, cut short"),
        ("a.pth", cut, "cannot read .*: damaged, cut short"),
        ("a.pth", lambda path: path.touch(), r"cannot read .* \(EOFError: .*damaged, cut short"),
        ("a.pth", lambda path: path.write_text("weights"), "cannot read .*damaged, cut short"),
        ("a.pth", pickled, "cannot read .*damaged, cut short"),
        ("a.pth", lambda path: torch.save([torch.zeros(1)], path), "holds a list: save the net"),
        ("a.pth", lambda path: torch.save({"epoch": 3}, path), r"more than weights \(epoch\)"),
        (
            "a.pth",
            lambda path: torch.save({"model": {}, "where": pathlib.PurePosixPath("x")}, path),
            r"holds more than weights \(pathlib.PurePosixPath\), .*extract its state dict",
        ),
    ],
)
def test_files_that_hold_no_weights_are_one_line(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        TimmBackbone(checkpoint=str(tmp_path / name), **TINY)
    assert "\n" not in str(caught.value)


def test_training_files_of_dino_and_ibot_give_the_teachers_backbone(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0).state_dict()
    teacher = {f"backbone.{key}": value for key, value in source.items()}
    student = {f"module.backbone.{key}": value + 1 for key, value in source.items()}
    student["module.backbone.masked_embed"] = torch.zeros(1, 192)
    for branch in (teacher, student):
        branch[f"{'module.' if branch is student else ''}head.mlp.0.weight"] = torch.zeros(8, 192)
    options = {"args": argparse.Namespace(arch="vit_tiny"), "epoch": 3}
    torch.save({"student": student, "teacher": teacher, **options}, tmp_path / "both.pth")
    torch.save({"student": student, **options}, tmp_path / "student.pth")
    for name, more in (("both", 0), ("student", 1)):
        backbone = TimmBackbone(checkpoint=str(tmp_path / f"{name}.pth"), **TINY)
        for key, value in backbone.model.state_dict().items():
            torch.testing.assert_close(value, source[key] + more)


def test_weights_that_are_replaced_need_not_be_there():
    with replaced_weights():
        TimmBackbone(checkpoint="gone.safetensors", **TINY)
    with pytest.raises(UserError, match="not found"):
        TimmBackbone(checkpoint="gone.safetensors", **TINY)


def test_the_class_tokens_attention_is_what_timm_computes():
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, options=options).eval()
    image, seen = torch.rand(2, 3, 32, 24), []
    attention = backbone.model.blocks[-1].attn
    attention.fused_attn = False  # then the shares pass through a layer of their own
    attention.attn_drop.register_forward_hook(lambda layer, given, shares: seen.append(shares))
    with torch.no_grad():
        backbone.encode(image)
        found = backbone.class_attention(image)
    expected = seen[0][:, :, 0, 1:].mean(1).view(2, 4, 3)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 1e-4
    assert TimmBackbone("resnet10t", 32).class_attention(image) is None
