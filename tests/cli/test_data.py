"""``handrec data``: written in a layout, checked, trained on."""

import json

import cv2
import pytest
import yaml

from handrec.cli.main import main
from handrec.data.ho3d import HO3D
from handrec.errors import UserError
from tests.cli.conftest import REPOSITORY

FORMATS = {
    "freihand": "freihand", "ho3d_v2": "ho3d_v2", "ho3d_v3": "ho3d_v3", "coco": "coco_hands",
    "dexycb": "dexycb", "interhand26m": "interhand26m", "rhd": "rhd",
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("HANDREC_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def synth(layout, count=16):
    return main(
        ["data", "synth", f"--format={layout}", "--out=set", f"--count={count}", "--size=48"]
    )


@pytest.mark.parametrize(("layout", "name"), FORMATS.items())
def test_what_is_written_passes_the_check(here, capsys, layout, name):
    assert synth(layout) == 0
    assert f"handrec data check {name} set" in capsys.readouterr().out
    assert main(["data", "check", name, "set"]) == 0
    out = capsys.readouterr().out
    assert "nothing wrong" in out
    if name in ("freihand", "dexycb", "interhand26m"):  # against the hand model: exact
        assert "parameters against labels, joints: mean 0.000 mm, most 0.000 mm" in out
    for split in ("train", "val", "test"):
        sheet = cv2.imread(str(here / f"data_check/{name}-{split}.png"))
        assert sheet is not None
        assert sheet.std() > 10


def test_wrong_parameters_show(here, capsys):
    synth("freihand")
    path = here / "set/training_mano.json"
    entries = json.loads(path.read_text())
    for entry in entries:
        entry[0][48] += 2.0  # another shape
    path.write_text(json.dumps(entries))
    assert main(["data", "check", "freihand", "set"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "joints: mean" in x)
    assert float(line.split("mean ")[1].split()[0]) > 2


def test_images_at_fault_are_listed(here, capsys):
    synth("coco")
    path = here / "set/images/00000003.jpg"
    cv2.imwrite(str(path), cv2.imread(str(path))[:40])
    assert main(["data", "check", "coco_hands", "set", "--set", "val_share=0.2"]) == 1
    out = capsys.readouterr().out
    assert "48 x 40 pixels, its labels are for 48 x 48" in out
    assert "1 at fault" in out


def test_missing_files_are_listed(here, capsys):
    synth("freihand")
    for number in (3, 8, 21):
        (here / f"set/training/rgb/{number:08d}.jpg").unlink()
    assert main(["data", "check", "freihand", "set"]) == 1
    out = capsys.readouterr().out
    for number in (3, 8, 21):
        assert f"set/training/rgb/{number:08d}.jpg: missing" in out
    assert "3 files cannot be used" in out


def test_files_that_are_damaged_inside_are_listed(here, capsys):
    synth("freihand")
    files = [here / f"set/training/{kind}/00000003.jpg" for kind in ("rgb", "mask")]
    for path in files:
        content = bytearray(path.read_bytes())
        start = content.rfind(b"\xff\xda") + 20
        content[start + 60 : start + 160] = b"\xff\x00" * 50  # no code of any table
        path.write_bytes(content)
    assert main(["data", "check", "freihand", "set", "--images", "0"]) == 1
    out = capsys.readouterr().out
    for path in files:
        name = path.relative_to(here)
        assert f"{name}: damaged inside, decoders fill in the rest (Corrupt JPEG data" in out
    assert "2 at fault" in out
    assert "2 files are at fault" in out


def test_joints_of_another_order_are_warned_of(here, capsys):
    synth("freihand")
    path = here / "set/training_xyz.json"
    joints = json.loads(path.read_text())
    path.write_text(json.dumps([[entry[0], *reversed(entry[1:])] for entry in joints]))
    assert main(["data", "check", "freihand", "set"]) == 0
    out = capsys.readouterr().out
    warnings = out.count("joints of another order")
    assert warnings
    assert f"no file is at fault, but {warnings} warnings above want a look" in out
    assert "nothing wrong" not in out


def test_keypoints_of_other_images_are_warned_of(here, capsys):
    synth("coco")
    path = here / "set/annotations.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["keypoints"] = [
            value + 500 * (i % 3 == 0) for i, value in enumerate(entry["keypoints"])
        ]
    path.write_text(json.dumps(content))
    assert main(["data", "check", "coco_hands", "set"]) == 0
    out = capsys.readouterr().out
    assert "100.0% of the keypoints outside their crop" in out
    warnings = out.count("warning: that is most of them")
    assert f"no file is at fault, but {warnings} warnings above want a look" in out


def test_a_mask_of_all_colour_versions_is_one_fault(here, capsys):
    synth("freihand")
    masks = list((here / "set/training/mask").iterdir())
    for mask in masks:
        mask.write_bytes(b"no picture" * 50)
    assert main(["data", "check", "freihand", "set", "--images", "0"]) == 1
    out = capsys.readouterr().out
    assert all(out.count(f"mask/{mask.name}") == 1 for mask in masks)
    assert f"{len(masks)} files are at fault" in out


def test_the_check_looks_again(here, capsys):
    """Changes that no folder's time tells of; and what fails then does not serve a training."""
    synth("ho3d_v3")
    assert main(["data", "check", "ho3d_v3", "set"]) == 0
    meta = next((here / "set/train").rglob("*.pkl"))
    meta.write_bytes(b"no pickle")
    for _ in range(2):
        assert main(["data", "check", "ho3d_v3", "set"]) == 2
        assert meta.name in capsys.readouterr().err
    with pytest.raises(UserError, match=meta.name):
        HO3D(str(here / "set"), "v3").setup("fit")


@pytest.mark.parametrize("name", ["shards", "video"])
def test_streams_are_checked(here, capsys, name):
    if name == "shards":
        assert synth("shards") == 0
        assert "handrec data check shards set" in capsys.readouterr().out
        root, damaged = here / "set", here / "set/000000.tar"
    else:
        synth("coco")
        root, damaged = here / "set/images", here / "set/images/00000002.jpg"
    given = ["data", "check", name, str(root), "--set", "val_share=0.2"]
    given += ["--set", "stride=1"] if name == "video" else []
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "nothing wrong" in out
    assert ("with keypoints 13" if name == "shards" else "with keypoints 0") in out
    for split in ("train", "val"):
        assert cv2.imread(str(here / f"data_check/{name}-{split}.png")).std() > 10
    whole = damaged.read_bytes()
    start = whole.rfind(b"\xff\xda", 0, len(whole) - 2000 if name == "shards" else None) + 20
    damaged.write_bytes(whole[: start + 60] + b"\xff\x00" * 50 + whole[start + 160 :])
    assert main(given) == 1
    out = capsys.readouterr().out
    assert "damaged inside, decoders fill in the rest (Corrupt JPEG data" in out
    assert out.count("13 pictures") == 1  # it is read all the same
    damaged.write_bytes(whole[: len(whole) // 2])
    assert main(given) == 1
    assert damaged.name in capsys.readouterr().out


def test_formats_go_by_the_names_of_the_overlays_too(here, capsys):
    assert synth("coco_hands") == 0
    assert (here / "set/annotations.json").is_file()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["check", "freihand"], "freihand is not part of handrec: give its folder"),
        (["check", "freihand", "nowhere"], "freihand: no folder nowhere"),
        (["check", "freihnd", "nowhere"], "unknown DATA 'freihnd' (did you mean 'freihand'?)"),
        (["check", "synthetic"], "synthetic is drawn or a mixture: check its sets by themselves"),
        (["check", "shards", "nowhere"], "nowhere: no such archive"),
        (["check", "video", "nowhere"], "nowhere: no such video or folder"),
        (["check", "ho3d_v2", "set"], "set is not the root of ho3d_v2: it has no train.txt"),
        (["check", "coco_hands", "set", "--set", "x"], "--set x: expected OPTION=VALUE"),
        (["check", "coco_hands", "set", "--set", "x=1"], "--set x: coco_hands has no such option"),
        (["check", "coco_hands", "set", "--set", "val_share=x"], "--set val_share: expected float"),
        (["check", "coco_hands", "set", "--set", "side=up"], "expected ['right', 'left'], got up"),
        (["check", "freihand", "set", "--set", "crop=foo"], "expected ['hand', 'image'], got foo"),
        (["check", "freihand", "set", "--set", "versions=[blue]"], "'auto'], got blue"),
        (["check", "freihand", "set", "--images", "-3"], "--images -3: must be at least 0"),
        (["check", "freihand", "set", "--out=set/notes.txt"], "a file is where this folder"),
        (["synth", "--format=coco", "--out=set"], "set is not empty"),
        (["synth", "--format=coco", "--out=o", "--count=2"], "--count must be at least 8"),
        (["synth", "--format=dexycb", "--out=o", "--size=512"], "pictures are 640 x 480"),
        (["pack", "nowhere", "--out=o"], "nowhere: no such image or folder"),
        (["pack", "set", "--out=o"], "set: no images"),
        (["pack", "set", "--out=o", "--per-shard=0"], "--per-shard and --shortest must be at"),
        (["keypoints", "set"], "who finds the keypoints? --run=NAME or --ckpt=FILE"),
        (["keypoints", "set", "--run=a", "--ckpt=b"], "give --run or --ckpt, not both"),
        (["keypoints", "set", "--run=nothing"], "nothing"),
        (["keypoints", "set", "--detector=x.task"], "no detector file x.task"),
    ],
)
def test_mistakes_are_one_line(here, capsys, args, said):
    (here / "set").mkdir()
    (here / "set/notes.txt").touch()
    assert main(["data", *args]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("handrec: error")]
    assert said in line


@pytest.mark.parametrize(
    "name",
    ["freihand", "ho3d_v2", "ho3d_v3", "coco_hands", "folder", "dexycb", "interhand26m", "rhd"],
)
def test_overlays_parse_with_options(here, capsys, name):
    options = ["--data.root=somewhere", "--data.crop=image", "--data.box_scale=1.3"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--exp=handmim", f"--dataset={name}", "--scale=smoke", *options[:1],
              *(options[1:] if name != "folder" else []), "--print_config"])  # fmt: skip
    assert exit_.value.code in (0, None)
    printed = capsys.readouterr().out
    data = yaml.safe_load(printed[printed.index("seed_everything:") :])["data"]
    assert data["init_args"]["root"] == "somewhere"
    assert data["init_args"]["image_size"] == 64
    assert (REPOSITORY / "docs/datasets.md").read_text().count(f"`{name}`")


@pytest.mark.parametrize("name", ["coco_hands", "detected"])
@pytest.mark.parametrize("experiment", ["s2hand", "s2hand_shape"])
def test_s2hand_takes_no_depth_from_cameras_it_does_not_know(here, capsys, name, experiment):
    with pytest.raises(SystemExit):
        main(["fit", f"--exp={experiment}", f"--dataset={name}", "--scale=smoke", "--print_config"])
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed[printed.index("seed_everything:") :])
    assert config["model"]["init_args"]["regressor"]["init_args"]["camera"] == "weak"


@pytest.mark.parametrize("name", ["shards", "video", "mixture"])
def test_overlays_of_streams_and_mixtures_parse(here, capsys, name):
    given = {"shards": ["--data.shards=s"], "video": ["--data.root=v", "--data.stride=3"]}
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--exp=handmim_pretrain", f"--dataset={name}", "--scale=gpu",
              *given.get(name, []), "--print_config"])  # fmt: skip
    assert exit_.value.code in (0, None)
    printed = capsys.readouterr().out
    data = yaml.safe_load(printed[printed.index("seed_everything:") :])["data"]["init_args"]
    assert data["image_size"] == 224
    assert data["augmentation"] is None
    assert f"`{name}`" in (REPOSITORY / "docs/datasets.md").read_text()


def test_packed_photos_are_pictures_of_shards(here, capsys):
    synth("coco")
    capsys.readouterr()
    assert main(["data", "pack", "set/images", "--out=shards", "--per-shard=6"]) == 0
    assert "16 pictures in 3 archives" in capsys.readouterr().out
    (here / "set/images/broken.png").write_bytes(b"no")
    assert main(["data", "pack", "set/images", "--out=again"]) == 1
    assert "broken.png: not an image" in capsys.readouterr().out


@pytest.mark.slow
def test_keypoints_of_a_network_are_labels(here, capsys):
    """Those of a network that was trained for two steps are bad ones; the way there is the same."""
    synth("coco")
    arguments = ["--exp=s2hand_keypoints", "--dataset=coco_hands", "--scale=smoke"]
    assert main(["fit", *arguments, "--data.root=set", "--data.num_workers=0"]) == 0
    boxes = {"00000003.jpg": [{"box": [4, 6, 40, 44], "side": "left"}],
             "00000005.jpg": [{"box": [2, 2, 46, 46]}]}  # fmt: skip
    (here / "boxes.json").write_text(json.dumps(boxes))
    for extra, count in ((["--boxes=boxes.json"], 2), ([], 16)):
        out = here / f"set/images/found{count}.json"
        given = ["--run=s2hand_keypoints", "--size=64", f"--out={out}", *extra]
        assert main(["data", "keypoints", "set/images", *given]) == 0
        assert f"{count} hands in {count} photos" in capsys.readouterr().out
        content = json.loads(out.read_text())
        for entry in content["annotations"]:
            assert len(entry["keypoints"]) == 63
            assert all(0 < score <= 1 for score in entry["keypoint_scores"])
        if extra:
            first = content["annotations"][0]
            assert first["bbox"] == [3.5, 5.5, 36, 38]
            assert [a["side"] for a in content["annotations"]] == ["left", "right"]
        options = [f"--set=annotations={out.name}", "--set=val_share=0.4"]
        assert main(["data", "check", "coco_hands", "set/images", *options]) == 0
    assert main(["data", "keypoints", "set/images", *given]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shards", "folder"])
def test_a_stream_trains(here, layout):
    synth("shards" if layout == "shards" else "coco", 20)
    name = {"shards": "shards", "folder": "video"}[layout]
    given = {"shards": "--data.shards=set", "video": "--data.root=set/images"}[name]
    assert main(["fit", "--exp=handmim_pretrain", f"--dataset={name}", "--scale=smoke", given]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["freihand", "ho3d_v3", "coco"])
def test_a_method_trains_and_is_evaluated_on_it(here, capfd, layout):
    synth(layout, 20)
    name = FORMATS[layout]
    options = ["--data.root=set", "--data.num_workers=1"]
    assert main(["fit", "--exp=handmim", f"--dataset={name}", "--scale=smoke", *options]) == 0
    assert main(["test", "--run=handmim"]) == 0
    assert (
        main(["fit", "--exp=handmim_pretrain", f"--dataset={name}", "--scale=smoke", *options]) == 0
    )
    capfd.readouterr()
    images = here / "set" / {"coco": "images", "freihand": "training/rgb"}.get(layout, "train")
    path = sorted(images.rglob("*.jpg"))[1]
    path.write_bytes(path.read_bytes()[:-200])
    (here / ".cache").rename(here / "old")
    assert main(["fit", "--exp=handmim", f"--dataset={name}", "--scale=smoke", *options]) == 2
    assert "truncated image" in capfd.readouterr().err
