"""The command line end to end, and the traps of LightningCLI."""

import os
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.loggers import WandbLogger

from handrec.cli import loggers
from handrec.cli.command_line import (
    PHOTOS,
    VIDEO_WRITER,
    VIDEOS,
    WRITER,
    expand,
    photo_arguments,
)
from handrec.cli.main import TOOLS, main, mistake
from handrec.cli.parse_errors import shorten
from handrec.errors import UserError
from handrec.methods.loading import load_method
from tests.cli.conftest import REPOSITORY, write_yaml

DUMMIES = "tests.cli.dummies"


def weight_used(capsys, *args):
    capsys.readouterr()
    assert main(["test", *args]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "test/photo_weight" in x)
    return float(line.split()[-1])


def test_fit_test_predict_in_a_process_of_its_own(workspace):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    start = [
        sys.executable,
        "-c",
        "import sys; from handrec.cli.main import main; sys.exit(main())",
    ]

    def handrec(*args):
        return subprocess.run(
            [*start, *args],
            env=environment,
            cwd=workspace,
            capture_output=True,
            text=True,
            check=False,
        )

    done = handrec("fit", "--exp", "dummy", "--scale=smoke")
    assert done.returncode == 0, done.stderr
    assert "handrec: dummy · data dummy · scale smoke" in done.stdout
    assert "make eval EXP=dummy" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr  # a log file gets no control characters
    assert "\r" not in done.stdout + done.stderr
    done = handrec("test", "--run=dummy")
    assert done.returncode == 0, done.stderr
    assert "best.ckpt" in done.stdout
    done = handrec("fit", "--exp=dmmy")
    assert done.returncode == 2
    assert (
        done.stderr
        == "handrec: error: unknown EXP 'dmmy' (did you mean 'dummy'?); there is dummy\n"
    )


@pytest.mark.slow
def test_two_processes_share_one_run(workspace):
    script = workspace / "start.py"  # Lightning starts the second process from a file
    script.write_text("import sys\nfrom handrec.cli.main import main\nsys.exit(main())\n")
    options = ["--exp=dummy", "--scale=smoke", "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, script, "fit", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("make eval EXP=dummy") == 1
    assert done.stdout.count("handrec: dummy") == 1
    assert [path.name for path in Path("lightning_logs/dummy").iterdir()] == ["version_0"]


def test_a_run_is_complete(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    } <= files
    assert not [name for name in files if name.startswith("checkpoints/") and "-v" in name]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["bases"] == []  # stands alone
    assert (config["name"], config["dataset"], config["scale"]) == ("dummy", "dummy", "smoke")
    assert config["model"]["init_args"]["weights"] == {"photo": 2.0, "silhouette": 0.1}
    assert "val/pa_mpvpe" in (trained / "metrics.csv").read_text().splitlines()[0]


def test_the_next_run_gets_the_next_version_and_overwrites_nothing(trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert main(["fit", "--exp=dummy", "--scale=smoke", "--model.lr=0.2"]) == 0
    assert (trained.parent / "version_1" / "config.yaml").is_file()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_evaluation_leaves_the_training_s_files_as_they_are(trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert main(["test", "--run=dummy"]) == 0
    assert main(["validate", "--run=dummy"]) == 0
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_best_checkpoint_is_the_best(trained):
    best, last = (
        torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("best", "last")
    )
    values = [
        float(row["val/pa_mpvpe"])
        for row in _rows(trained / "metrics.csv")
        if row.get("val/pa_mpvpe")
    ]
    assert last["epoch"] == 1
    assert best["epoch"] == values.index(min(values))


def _rows(path):
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def test_the_command_line_beats_the_checkpoint(trained, capsys):
    assert weight_used(capsys, "--run=dummy") == 2.0
    assert weight_used(capsys, "--run=dummy", "--model.weights.photo=0.5") == 0.5
    checkpoint = f"--ckpt_path={trained}/checkpoints/last.ckpt"
    assert weight_used(capsys, checkpoint, "--model.weights.photo=0.25") == 0.25


def test_run_takes_a_directory_an_experiment_or_nothing(trained, capsys):
    assert weight_used(capsys, f"--run={trained}") == 2.0
    assert weight_used(capsys) == 2.0
    assert main(["test", "--run=dummy", "--which=last"]) == 0
    assert "last.ckpt" in capsys.readouterr().out


def test_a_checkpoint_far_from_its_run_is_enough(trained, tmp_path, capsys):
    stray = tmp_path / "downloads" / "hand.ckpt"
    stray.parent.mkdir()
    (trained / "checkpoints" / "last.ckpt").rename(stray)
    assert weight_used(capsys, f"--ckpt_path={stray}") == 2.0


def test_load_method_rebuilds_the_method(trained):
    method = load_method(trained / "checkpoints" / "last.ckpt")
    assert type(method).__name__ == "DummyMethod"
    assert method.weights.photo == 2.0
    saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in method.state_dict().items())


def test_predict_swaps_the_data_and_adds_the_writer(trained, monkeypatch, capsys):
    monkeypatch.setattr("handrec.cli.command_line.PHOTOS", f"{DUMMIES}.DummyPhotos")
    monkeypatch.setattr("handrec.cli.command_line.WRITER", f"{DUMMIES}.DummyWriter")
    Path("photos").mkdir()
    Path("boxes.json").write_text("{}")
    options = ["--input=photos", "--boxes=boxes.json", "--out=found"]
    assert main(["predict", "--run=dummy", *options]) == 0
    assert len(list(Path("found").glob("*.json"))) == 3
    assert "found/ holds 3 .json" in capsys.readouterr().out


def test_another_data_set_at_evaluation(trained, workspace):
    overlay = {"data": {"class_path": f"{DUMMIES}.DummyData", "init_args": {"size": 4}}}
    write_yaml(workspace / "experiments" / "data" / "other.yaml", overlay)
    assert main(["test", "--run=dummy", "--dataset=other"]) == 0


def test_another_data_set_at_evaluation_inherits_as_in_training(trained, workspace):
    folder = workspace / "experiments"
    for name in ("data/common", "scale/smoke/common"):
        write_yaml(folder / f"{name}.yaml", {})
    for name in ("data/other", "scale/smoke/other"):
        write_yaml(folder / f"{name}.yaml", {"bases": ["common.yaml"]})
    args = expand(["test", "--run=dummy", "--dataset=other"])
    files = [Path(arg.partition("=")[2]) for arg in args if arg.startswith("--config=")][1:]
    names = [str(file.relative_to(folder).with_suffix("")) for file in files]
    assert names == ["data/common", "data/other", "scale/smoke/common", "scale/smoke/other"]


def test_lists_append_and_dataclasses_merge(workspace):
    write_yaml(
        workspace / "experiments" / "child.yaml",
        {
            "bases": ["dummy.yaml"],
            "dataset": "dummy",
            "model": {"init_args": {"weights": {"silhouette": 0.7}}},
            "trainer": {"callbacks+": [{"class_path": f"{DUMMIES}.DummyWriter"}]},
        },
    )
    writer = [
        f"--trainer.callbacks+={DUMMIES}.DummyWriter",
        "--trainer.callbacks.out=second",
    ]
    assert main(["fit", "--exp=child", "--scale=smoke", *writer]) == 0
    config = yaml.safe_load(Path("lightning_logs/child/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["weights"] == {"photo": 2.0, "silhouette": 0.7}
    outs = [callback["init_args"]["out"] for callback in config["trainer"]["callbacks"]]
    assert outs == ["predictions", "second"]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.weightz.photo=1", "unknown key model.weightz.photo (did you mean 'weights'?)"),
        ("--model.weights.phto=1", "unknown key model.weights.phto (did you mean 'photo'?)"),
        ("--model.init_args.weights.phto=1", "unknown key model.weights.phto"),
        ("--model.init_args.weights.phot=1", "unknown key model.weights.phot"),
        ("--model.weights.photo=abc", "model.weights.photo: expected float, got abc"),
        ("--model.part.widthh=3", "unknown key model.part.widthh (did you mean 'width'?)"),
        ("--data.sizee=2", "unknown key data.sizee (did you mean 'size'?)"),
        ("--data.size=x", "data.size: expected int, got x"),
        ("--trainer.max_epoch=1", "unknown key trainer.max_epoch (did you mean 'max_epochs'?)"),
        ("--trainer.max_epochs=x", "trainer.max_epochs: expected int, got x"),
        ("--checkpoint.monitorr=x", "unknown key checkpoint.monitorr"),
        ("--nonsense=1", "unknown key nonsense"),
        (
            f"--model={DUMMIES}.Nope",
            f"model: module '{DUMMIES}' has no attribute 'Nope'",
        ),
        ("--model.part=nowhere.Part", "model.part: No module named 'nowhere'"),
        ("--model.fail=this size cannot be", "this size cannot be"),
        ("--ckpt_path=none.ckpt", "no checkpoint none.ckpt"),
        ("--config=none.yaml", "no configuration file"),
    ],
)
def test_a_mistake_is_refused_with_its_key(refuse, option, expected):
    assert expected in refuse("fit", "--exp=dummy", "--scale=smoke", option)
    assert not list(Path().glob("lightning_logs/*/*"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"mdel": {"init_args": {"lr": 1.0}}}, "unknown key mdel.lr"),
        ({"model": {"init_args": {"weights": {"phto": 1.0}}}}, "unknown key model.weights.phto"),
        ({"model": {"init_args": {"lr": "fast"}}}, "model.lr: expected float, got fast"),
        ({"trainer": {"max_epoch": 1}}, "unknown key trainer.max_epoch"),
    ],
)
def test_a_mistake_in_a_file_is_refused_with_its_key(refuse, workspace, content, expected):
    path = write_yaml(workspace / "mine.yaml", content)
    assert expected in refuse("fit", "--exp=dummy", "--scale=smoke", "-c", str(path))


def test_names_that_do_not_exist_list_those_that_do(refuse):
    assert refuse("fit") == "say which experiment: --exp=NAME (with make, EXP=NAME); there is dummy"
    for command, option in {"fit": "exp", "test": "run", "predict": "input"}.items():
        expected = f"dummy: options begin with --, did you mean --{option}=dummy?"
        assert refuse(command, "dummy") == expected
    assert "there is dummy" in refuse("fit", "--exp=s2hand")
    assert "there is dummy, synthetic" in refuse("fit", "--exp=dummy", "--dataset=x")
    assert "there is cpu, gpu, smoke" in refuse("fit", "--exp=dummy", "--scale=x")
    assert "make train EXP=dummy" in refuse("test", "--run=dummy")
    assert "did you mean 'predict'?" in refuse("predct")
    assert refuse("predict", "--input=nowhere") == "no image, video or folder nowhere"


def test_a_checkpoint_of_another_method_is_refused(trained, refuse):
    path = f"--ckpt_path={trained}/checkpoints/last.ckpt"
    line = refuse("fit", "--exp=dummy", "--scale=smoke", f"--model={DUMMIES}.OtherMethod", path)
    assert f"is a checkpoint of {DUMMIES}.DummyMethod, not of {DUMMIES}.OtherMethod" in line


def test_a_broken_or_malicious_checkpoint_is_refused(trained, refuse, tmp_path):
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "cut.ckpt: not a PyTorch file, or cut short" in refuse(
        "test", "--ckpt_path=cut.ckpt", "--run=dummy"
    )
    torch.save({"state_dict": {}, "x": _Evil()}, "evil.ckpt")
    assert "cannot read checkpoint evil.ckpt" in refuse(
        "test", "--ckpt_path=evil.ckpt", "--run=dummy"
    )
    assert not Path("ran").exists()


class _Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_checkpoint_with_other_weights_is_refused_in_one_line(trained, refuse):
    line = refuse("test", "--run=dummy", "--model.part.width=5")
    assert line.startswith("the checkpoint does not fit the model")
    assert len(line) < 700


def test_an_unwritable_log_directory_is_found_before_anything_is_built(refuse, monkeypatch):
    Path("file").write_text("")
    line = refuse(
        "fit",
        "--exp=dummy",
        "--scale=smoke",
        "--trainer.default_root_dir=file",
        "--model.fail=built",
    )
    assert line == "cannot write to file/lightning_logs: Not a directory"
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(loggers.shutil, "disk_usage", lambda path: usage(3_000_000))
    line = refuse("fit", "--exp=dummy", "--scale=smoke", "--model.fail=built")
    assert line == "lightning_logs is on a full disk: 3 MB free, 200 MB wanted"


def test_a_defect_keeps_its_traceback_and_debug_shows_all(workspace, monkeypatch):
    monkeypatch.setattr("handrec.cli.command_line.expand", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit"])
    monkeypatch.setenv("HANDREC_DEBUG", "1")
    with pytest.raises(UserError):
        main(["frobnicate"])


def test_fast_dev_run_leaves_nothing(workspace):
    assert main(["fit", "--exp=dummy", "--scale=cpu", "--trainer.fast_dev_run=true"]) == 0
    assert not Path("lightning_logs").exists()


def test_loggers_and_checkpoints_can_be_switched_off(workspace):
    off = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    assert main(["fit", "--exp=dummy", "--scale=smoke", *off]) == 0
    assert not list(Path().rglob("*.ckpt"))


def test_wandb_is_offline_unless_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(loggers, "reachable", lambda *args: pytest.fail("asked the network"))
    assert loggers.wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    monkeypatch.setattr(loggers, "reachable", lambda *args: True)
    assert loggers.wandb_mode() == "online"
    monkeypatch.setattr(loggers, "reachable", lambda *args: False)
    assert loggers.wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb_mode() == "disabled"


def test_a_server_that_does_not_answer_is_waited_for_briefly(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert loggers.reachable("127.0.0.1", server.getsockname()[1])
        port = server.getsockname()[1]
    assert not loggers.reachable("127.0.0.1", port)

    def hang(*args, **kwargs):
        time.sleep(1)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    assert not loggers.reachable("example.invalid", 443, seconds=0.1)
    assert time.monotonic() - start < 0.9


@pytest.mark.slow
def test_wandb_mirrors_the_run_offline_and_quietly(workspace, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    sent, send = [], WandbLogger.log_hyperparams

    def note(logger, values):
        sent.append(values)
        send(logger, values)

    monkeypatch.setattr(WandbLogger, "log_hyperparams", note)
    assert main(["fit", "--exp=dummy", "--scale=cpu"]) == 0
    run = Path("lightning_logs/dummy/version_0")
    whole = [values["config"] for values in sent if "config" in values]
    assert whole == [yaml.safe_load((run / "config.yaml").read_text())]
    assert (run / "config.yaml").is_file()  # the CSV logger owns the run directory
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    captured = capfd.readouterr()
    assert "wandb:" not in captured.out + captured.err


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; from handrec.cli.main import main; main(['--help']); "
        "sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("fit", "predict", *TOOLS))


def test_shorten_falls_back_to_the_message_in_one_line():
    assert shorten("something\n  odd") == "something odd"
    assert mistake(ValueError("a defect")) is None


def arguments(*args):
    return expand(["predict", "--model=x", *args])[1:]


def test_the_input_chooses_photos_or_videos(workspace):
    Path("photos").mkdir()
    Path("photos/a.JPG").touch()
    Path("photos/b.mp4").touch()
    Path("clips").mkdir()
    Path("clips/b.MOV").touch()
    for name, data in (("photos", PHOTOS), ("photos/a.JPG", PHOTOS), ("clips", VIDEOS),
                       ("clips/b.MOV", VIDEOS)):  # fmt: skip
        found = arguments(f"--input={name}")
        assert f"--data={data}" in found
        assert "--trainer.callbacks.out=predictions" in found
        writer = VIDEO_WRITER if data == VIDEOS else WRITER
        assert f"--trainer.callbacks+={writer}" in found


def test_options_of_predict_reach_the_data_and_the_writer(workspace):
    Path("a.mp4").touch()
    options = ["--camera=900", "--side=left", "--formats=obj,ply", "--smooth=true", "--out=o"]
    found = arguments("--input=a.mp4", *options)
    assert found[-6:-1] == [
        "--trainer.callbacks.out=o", "--data.intrinsics=900", "--data.side=left",
        "--trainer.callbacks.formats=[obj,ply]", "--trainer.callbacks.smooth=true",
    ]  # fmt: skip
    assert arguments("--input=a.mp4", "--formats=none")[-2] == "--trainer.callbacks.formats=[]"


def test_videos_beside_photos_are_said_to_be_left_out(tmp_path, capsys):
    for name in ("a.mp4", "b.MOV", "._c.mp4"):
        (tmp_path / name).touch()
    list(photo_arguments({"input": str(tmp_path)}))
    assert capsys.readouterr().err == ""  # of a folder of videos alone
    (tmp_path / "a.jpg").touch()
    assert f"--data={PHOTOS}" in list(photo_arguments({"input": str(tmp_path)}))
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 videos in it are left out" in line


def test_options_of_predict_that_make_no_sense_are_refused(trained, refuse):
    Path("photos").mkdir()
    line = refuse("predict", "--run=dummy", "--input=photos", "--smooth=true")
    assert line == "--smooth is for videos, and photos is none"
    line = refuse("predict", "--run=dummy", "--input=photos", "--formats=stl")
    assert line == "--formats=stl: choose from obj, ply, glb, or none"
    line = refuse("predict", "--run=dummy", "--boxes=b.json", "--smooth=true")
    assert line == "--boxes, --smooth: only with --input=PHOTOS (INPUT=PHOTOS with make)"
    assert refuse("test", "--run=dummy", "--input=photos") == "--input is for predict, not for test"


def test_photos_need_nothing_of_a_runs_data_but_the_size_of_its_crops(trained):
    """Data sets change their arguments, and may not be on this machine: runs stay of use."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["data"] = {"class_path": "gone.Data", "init_args": {"image_size": 48, "old": 1}}
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    Path("photos").mkdir()
    found = expand(["predict", "--run=dummy", "--input=photos", "--data.batch_size=3"])
    assert not any("gone.Data" in arg for arg in found)
    at = [found.index(f"--data={PHOTOS}"), found.index("--data.image_size=48"),
          found.index("--data.batch_size=3")]  # fmt: skip
    assert at == sorted(at)
