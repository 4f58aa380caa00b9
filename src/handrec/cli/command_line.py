"""Expands the suite's own options into those of LightningCLI."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from handrec.cli import experiments, runs
from handrec.cli.resume import resume_arguments
from handrec.data import suffixes
from handrec.errors import UserError

#: What `--input` puts in the place of a run's data, and who writes its predictions down.
PHOTOS = "handrec.data.photos.Photos"
WRITER = "handrec.callbacks.predictions.PredictionWriter"
VIDEOS = "handrec.data.user_videos.Videos"
VIDEO_WRITER = "handrec.callbacks.video_predictions.VideoWriter"
#: Options that go with `--input`, and what they stand for.
INPUT_OPTIONS = {
    "boxes": "--data.boxes",
    "detector": "--data.detector",
    "camera": "--data.intrinsics",
    "side": "--data.side",
    "out": "--trainer.callbacks.out",
    "formats": "--trainer.callbacks.formats",
    "smooth": "--trainer.callbacks.smooth",
    "viewer": "--trainer.callbacks.viewer",
}
OWN = ("exp", "dataset", "scale", "run", "which", "resume", "input", *INPUT_OPTIONS)
#: An evaluation runs on one device of the machine it is typed on, however many trained.
ONE_PROCESS = ("--trainer.num_nodes=1", "--trainer.devices=1", "--trainer.strategy=auto")
_CROP_SIZE = "--data.image_size="
FORMATS = ("obj", "ply", "glb")
#: Under which a checkpoint holds the configuration it was trained with.
CONFIG_KEY = "handrec_config"


def expand(args: list[str]) -> list[str]:
    """Return a subcommand and its arguments with experiments, runs and bases expanded."""
    subcommand, *given = args
    refuse_bare_names(subcommand, given)
    own, rest = experiments.take(given, OWN)
    rest = experiments.expand_bases(rest)
    if "exp" in own and "run" in own:
        raise UserError("--exp starts from an experiment, --run from a run: give one of them")
    if subcommand == "fit" and "run" in own:
        raise UserError("to go on training a run, give --exp=NAME and --ckpt_path=CHECKPOINT")
    if subcommand != "fit" and "exp" in own and not experiments.take(rest, ("ckpt_path",))[0]:
        raise UserError(
            f"--exp has no trained weights: give --run={own['exp']} or --ckpt_path=FILE"
        )
    if subcommand != "predict" and "input" in own:
        raise UserError(f"--input is for predict, not for {subcommand}")
    if "resume" in own and (subcommand != "fit" or "exp" not in own):
        raise UserError("--resume goes with fit and --exp=NAME (make train EXP=NAME RESUME=1)")
    photos = list(photo_arguments(own))
    if "exp" in own:
        base = experiments.experiment_arguments(own["exp"], own.get("dataset"), own.get("scale"))
        if "resume" in own:
            if experiments.take(rest, ("ckpt_path",))[0]:
                raise UserError("--resume finds its checkpoint: leave --ckpt_path (CKPT) out")
            base += resume_arguments(own["resume"], [*base, *rest])
    elif subcommand != "fit" and ("run" in own or not says_model(rest)):
        base = list(run_arguments(own, rest))
    else:
        base = list(bare_arguments(own, rest))
    late = [arg for arg in base if arg.startswith(_CROP_SIZE)]  # of the photos' data, once named
    return [subcommand, *(arg for arg in base if arg not in late), *photos, *late, *rest]


def refuse_bare_names(subcommand: str, given: list[str]) -> None:
    """Refuse a first argument without dashes, and say which option it was meant for."""
    if given and not given[0].startswith("-"):
        option = {"fit": "exp", "predict": "input"}.get(subcommand, "run")
        raise UserError(f"{given[0]}: options begin with --, did you mean --{option}={given[0]}?")


def says_model(args: list[str]) -> bool:
    """Return whether arguments name a model by themselves, or only ask for help."""
    flags = {arg.partition("=")[0] for arg in args}
    return not flags.isdisjoint(
        {"--config", "--model", "--model.class_path", "--model.help", "--help", "-h"}
    )


def bare_arguments(own: dict[str, str], rest: list[str]) -> Iterator[str]:
    """Yield the overlays for a command that names its configuration files itself."""
    if not says_model(rest):
        known = experiments.listing(experiments.available("EXP"))
        raise UserError(f"say which experiment: --exp=NAME (with make, EXP=NAME); {known}")
    for kind, name in (("DATA", "dataset"), ("SCALE", "scale")):
        if name in own:
            for path in experiments.config_chain(experiments.find(kind, own[name])):
                yield f"--config={path}"
            yield f"--{name}={own[name]}"


def run_arguments(own: dict[str, str], rest: list[str]) -> Iterator[str]:
    """Yield the configuration and the checkpoint of a trained run, and another data set's."""
    if "scale" in own:
        raise UserError("a run keeps the scale it was trained at: leave SCALE out")
    named = experiments.take(rest, ("ckpt_path",))[0].get("ckpt_path")
    checkpoint = Path(named) if named else None
    if checkpoint and not checkpoint.is_file():
        raise UserError(f"no checkpoint {checkpoint}")
    run: Path | None
    if "run" in own:
        run = runs.resolve(own["run"])
    else:
        run = runs.run_of(checkpoint) if checkpoint else runs.latest()
    config = run / runs.CONFIG if run else None
    if "input" in own:
        yield from network_arguments(config, checkpoint or Path())
    else:
        yield f"--config={config or embedded_config(checkpoint or Path())}"
    yield from ONE_PROCESS
    if "dataset" in own:
        scale = experiments.read_yaml(config).get("scale") if config else None
        files = [experiments.find("DATA", own["dataset"])]
        files += list(experiments.overlays(scale, own["dataset"]))[1:] if scale else []
        for path in (member for file in files for member in experiments.config_chain(file)):
            yield f"--config={path}"
        yield f"--dataset={own['dataset']}"
    if checkpoint is None and run is not None:
        checkpoint = runs.choose_checkpoint(run, own.get("which", "best"))
        yield f"--ckpt_path={checkpoint}"
    experiments.say(f"checkpoint {checkpoint}")


def network_arguments(config: Path | None, checkpoint: Path) -> Iterator[str]:
    """Yield a run's configuration without its data, but with the size of the crops it learned on.

    What else the data of a training was is no matter to photos, and may not be there any more.
    """
    text = config.read_text(encoding="utf-8") if config else embedded_config(checkpoint)
    content = yaml.safe_load(text)
    data = content.pop("data", None) or {}
    yield f"--config={one_line(content)}"
    size = (data.get("init_args") or {}).get("image_size")
    if size is not None:
        yield f"{_CROP_SIZE}{size}"


def one_line(content: Any) -> str:
    """Return YAML as one line."""
    return yaml.safe_dump(content, default_flow_style=True, width=2**31).strip()


def embedded_config(checkpoint: Path) -> str:
    """Return the configuration kept inside a checkpoint that lies outside its run, as one line."""
    from handrec.methods.loading import read_checkpoint

    text = read_checkpoint(checkpoint).get(CONFIG_KEY)
    if not text:
        raise UserError(f"{checkpoint} lies in no run and holds no configuration: give --run too")
    return one_line(yaml.safe_load(text))


def photo_arguments(own: dict[str, str]) -> Iterator[str]:
    """Yield the options that swap a run's data for the user's photos and write the results."""
    given = {name: own[name] for name in INPUT_OPTIONS if name in own}
    if "input" not in own:
        if given:
            names = ", ".join(f"--{name}" for name in given)
            raise UserError(f"{names}: only with --input=PHOTOS (INPUT=PHOTOS with make)")
        return
    if not Path(own["input"]).exists():
        raise UserError(f"no image, video or folder {own['input']}")
    if "boxes" in own and not Path(own["boxes"]).is_file():
        raise UserError(f"no boxes file {own['boxes']}")
    video = holds_video(Path(own["input"]))
    if not video and (left_out := count_videos(Path(own["input"]))):
        print(
            f"{own['input']} has images: {left_out} videos in it are left out;"
            " predict on them one by one, or in a folder of their own",
            file=sys.stderr,
        )
    if "smooth" in own and not video:
        raise UserError(f"--smooth is for videos, and {own['input']} is none")
    yield f"--data={VIDEOS if video else PHOTOS}"
    yield f"--data.input={own['input']}"
    yield f"--trainer.callbacks+={VIDEO_WRITER if video else WRITER}"
    given = {"out": "predictions", **given}
    if "formats" in given:
        given["formats"] = mesh_formats(given["formats"])
    for name, value in given.items():
        yield f"{INPUT_OPTIONS[name]}={value}"


def holds_video(source: Path) -> bool:
    """Return whether an input is a video, or a folder of videos without any image."""
    if source.is_file():
        return source.suffix.lower() in suffixes.VIDEOS
    kinds = {path.suffix.lower() for path in source.iterdir() if not path.name.startswith(".")}
    return bool(kinds & suffixes.VIDEOS) and not kinds & suffixes.IMAGES


def count_videos(source: Path) -> int:
    """Return how many videos lie in a folder."""
    paths = [] if source.is_file() else source.iterdir()
    videos = (path for path in paths if path.suffix.lower() in suffixes.VIDEOS)
    return sum(not path.name.startswith(".") for path in videos)


def mesh_formats(given: str) -> str:
    """Return formats, separated by commas, as a list that the parser reads; `none` is empty."""
    names = [] if given == "none" else given.split(",")
    for name in names:
        if name not in FORMATS:
            raise UserError(f"--formats={given}: choose from {', '.join(FORMATS)}, or none")
    return f"[{','.join(names)}]"
