"""Names, bases and overlays; and every experiment of the repository runs."""

from pathlib import Path

import pytest
import yaml

from handrec.cli import experiments, runs
from handrec.cli.command_line import expand
from handrec.cli.main import main
from handrec.data.clips import Clip
from handrec.errors import UserError
from tests.cli.conftest import REPOSITORY, write_yaml

SHIPPED = sorted(
    str(path.relative_to(REPOSITORY / "experiments").with_suffix(""))
    for path in (REPOSITORY / "experiments").rglob("*.yaml")
    if path.relative_to(REPOSITORY / "experiments").parts[0] not in experiments.NOT_EXPERIMENTS
)


def configs(args):
    return [Path(arg.partition("=")[2]).name for arg in args if arg.startswith("--config=")]


def test_bases_come_first_and_once(tmp_path):
    for name, bases in {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}.items():
        write_yaml(tmp_path / f"{name}.yaml", {"bases": [f"{base}.yaml" for base in bases]})
    chain = experiments.config_chain(tmp_path / "d.yaml")
    assert [path.stem for path in chain] == ["a", "b", "c", "d"]


def test_a_base_of_itself_is_refused(tmp_path):
    write_yaml(tmp_path / "a.yaml", {"bases": ["b.yaml"]})
    write_yaml(tmp_path / "b.yaml", {"bases": ["a.yaml"]})
    with pytest.raises(UserError, match="is its own base"):
        experiments.config_chain(tmp_path / "a.yaml")


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"], ["-c", "{}"], ["-c={}"]])
def test_every_form_of_config_is_expanded(tmp_path, form):
    write_yaml(tmp_path / "base.yaml", {})
    path = write_yaml(tmp_path / "child.yaml", {"bases": ["base.yaml"]})
    args = experiments.expand_bases([part.format(path) for part in form] + ["--x=1"])
    assert configs(args) == ["base.yaml", "child.yaml"]
    assert args[-1] == "--x=1"


def test_overlays_come_in_order_and_the_command_line_last(workspace, capsys):
    scale = workspace / "experiments" / "scale"
    write_yaml(scale / "smoke" / "dummy.yaml", {})
    args = expand(["fit", "--model.lr=3", "--exp=dummy", "--scale", "smoke"])
    # data and experiment have the same name here: its tuning is applied for both
    assert configs(args) == [
        "short.yaml",
        "dummy.yaml",
        "dummy.yaml",
        "smoke.yaml",
        "dummy.yaml",
        "dummy.yaml",
    ]
    assert args[-1] == "--model.lr=3"
    assert capsys.readouterr().out == "handrec: dummy · data dummy · scale smoke\n"


def test_what_an_experiment_changes_in_one_data_set_comes_last(workspace):
    data = workspace / "experiments" / "data"
    write_yaml(data / "synthetic" / "dummy.yaml", {})
    write_yaml(workspace / "experiments" / "scale" / "smoke" / "dummy.yaml", {})
    args = expand(["fit", "--exp=dummy", "--dataset=synthetic", "--scale=smoke"])
    assert configs(args)[-3:] == ["smoke.yaml", "dummy.yaml", "dummy.yaml"]
    assert str(data / "synthetic" / "dummy.yaml") in args[-4]
    other = expand(["fit", "--exp=dummy", "--dataset=dummy", "--scale=smoke"])
    assert not any("synthetic" in arg for arg in other)
    assert experiments.available("DATA") == ["dummy", "synthetic"]


def test_tuning_of_a_scale_for_data_and_experiment(workspace):
    root = workspace / "experiments"
    write_yaml(root / "data" / "other.yaml", {})
    for name in ("other", "dummy", "unrelated"):
        write_yaml(root / "scale" / "smoke" / f"{name}.yaml", {})
    args = expand(["fit", "--exp=dummy", "--dataset=other", "--scale=smoke"])
    assert configs(args)[-4:] == ["other.yaml", "smoke.yaml", "other.yaml", "dummy.yaml"]
    assert {"--name=dummy", "--dataset=other", "--scale=smoke"} <= set(args)


@pytest.mark.parametrize("cuda", [True, False])
def test_the_default_scale_follows_the_machine_and_is_printed(workspace, monkeypatch, capsys, cuda):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    args = expand(["fit", "--exp=dummy"])
    scale = "gpu" if cuda else "cpu"
    assert f"--scale={scale}" in args
    assert f"scale {scale} (" in capsys.readouterr().out


def test_experiments_are_found_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiments.experiments_dir() == REPOSITORY / "experiments"


@pytest.mark.parametrize(
    ("name", "epochs", "batch"),
    [("s2hand", 180, 32), ("s2hand_shape", 120, 64), ("s2hand_keypoints", 120, 64),
     ("s2hand_finetune", 60, 64)],
)  # fmt: skip
def test_stages_of_s2hand_are_as_long_as_published(name, epochs, batch):
    found = {}
    path = REPOSITORY / "experiments" / "scale" / "paper" / f"{name}.yaml"
    for each in experiments.config_chain(path):
        content = yaml.safe_load(each.read_text(encoding="utf-8"))
        found |= content.get("trainer", {}) | content.get("data", {}).get("init_args", {})
    assert (found["max_epochs"], found["batch_size"]) == (epochs, batch)
    assert (found["precision"], found["gradient_clip_val"]) == ("32-true", None)


def backbone_options(name, scale):
    """Return a backbone's arguments by the chain of files, a dictionary replaced by the next."""
    found = {"image_size": 224, "stem": "patch", "options": None}
    args = experiments.experiment_arguments(name, "synthetic", scale)
    for arg in args:
        flag, _, path = arg.partition("=")
        if flag == "--config":
            model = experiments.read_yaml(Path(path)).get("model", {}).get("init_args", {})
            found |= model.get("backbone", {}).get("init_args", {})
    return {key: found[key] for key in ("name", "image_size", "stem", "options")}


@pytest.mark.parametrize("scale", experiments.available("SCALE"))
def test_what_handmim_pretrains_fits_what_it_fine_tunes(scale):
    pretrained, tuned = (
        backbone_options(name, scale) for name in ("handmim_pretrain", "handmim_finetune")
    )
    assert pretrained == tuned


@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_the_rate_of_ibot_is_scaled_with_the_batch(scale):
    found = {}
    for arg in experiments.experiment_arguments("handmim_pretrain", "synthetic", scale):
        flag, _, path = arg.partition("=")
        if flag == "--config":
            content = experiments.read_yaml(Path(path))
            for part in ("model", "data"):
                found |= content.get(part, {}).get("init_args", {})
    assert found["lr"] == pytest.approx(5e-4 * found["batch_size"] / 256)


def make_run(root, name, version, checkpoints=("last",)):
    run = root / "lightning_logs" / name / f"version_{version}"
    write_yaml(run / "config.yaml", {})
    for checkpoint in checkpoints:
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / f"{checkpoint}.ckpt").touch()
    return run


def test_runs_sort_by_number_and_need_a_checkpoint(workspace, capsys):
    for version in (2, 9, 10):
        make_run(workspace, "nested/dummy", version)
    make_run(workspace, "nested/dummy", 11, checkpoints=())  # died before its first checkpoint
    assert main(["runs", "latest", "nested/dummy"]) == 0
    assert capsys.readouterr().out.strip() == "lightning_logs/nested/dummy/version_10"
    assert [run.version for run in runs.all_runs()] == [2, 9, 10]
    with pytest.raises(UserError, match="there are runs of nested/dummy"):
        runs.latest("dummy")


def test_checkpoints_best_before_last(workspace):
    run = make_run(workspace, "dummy", 0, ["last", "best"])
    assert runs.choose_checkpoint(run).name == "best.ckpt"
    assert runs.choose_checkpoint(run, "last").name == "last.ckpt"
    assert runs.choose_checkpoint(make_run(workspace, "dummy", 1)).name == "last.ckpt"
    with pytest.raises(UserError, match="choose best or last"):
        runs.choose_checkpoint(run, "first")
    assert runs.run_of(run / "checkpoints" / "best.ckpt") == run


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments").rglob("*.yaml")), ids=str)
def test_every_configuration_file_is_well_formed(path):
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    if "sweeps" not in path.parts:
        known = {
            "bases",
            "name",
            "dataset",
            "seed_everything",
            "trainer",
            "model",
            "data",
            "checkpoint",
        }
        assert set(content) <= known


@pytest.mark.parametrize("scale", [s for s in experiments.available("SCALE") if s != "smoke"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_experiment_parses_at_every_scale(name, scale, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", f"--exp={name}", f"--scale={scale}", "--print_config"])
    assert exit_.value.code in (0, None)
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed[printed.index("seed_everything:") :])
    assert config["name"] == name


WITH_VIDEOS = (
    "coco_hands",
    "detected",
    "dexycb",
    "ho3d_v2",
    "ho3d_v3",
    "interhand26m",
    "synthetic",
)


@pytest.mark.parametrize("dataset", WITH_VIDEOS)
def test_clips_are_on_where_there_are_videos(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--exp=s2hand_video", f"--dataset={dataset}", "--scale=smoke",
              "--print_config"])  # fmt: skip
    assert exit_.value.code in (0, None)
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed[printed.index("seed_everything:") :])
    options = config["data"]["init_args"]
    assert Clip(**options["clip"]).per_batch(options["batch_size"]) == 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--data.init_args.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_experiment_trains_and_tests(name, cache, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["fit", f"--exp={name}", "--scale=smoke", cache]) == 0
    assert list(Path("lightning_logs", name, "version_0", "pictures").glob("epoch_*.png"))
    assert main(["test", f"--run={name}"]) == 0
    out = capfd.readouterr().out
    hands = name not in ("handmim_pretrain", "s2hand_keypoints")  # those reconstruct none
    assert (f"make predict EXP={name}" in out) == hands


@pytest.mark.parametrize("subcommand", ["test", "validate", "predict"])
def test_an_experiment_without_weights_is_not_evaluated(workspace, subcommand):
    with pytest.raises(UserError, match="no trained weights: give --run=dummy"):
        expand([subcommand, "--exp=dummy", "--scale=smoke"])
