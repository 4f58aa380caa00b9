"""LightningCLI with run directories, checkpoints and early checks."""

import logging
import os
import warnings
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from handrec.callbacks.best import BestCheckpoint
from handrec.callbacks.compiling import Compiled
from handrec.callbacks.failure import FailureDump
from handrec.callbacks.progress import progress_bar
from handrec.callbacks.safety import Safety, WholeCheckpoints
from handrec.callbacks.summary import EndSummary
from handrec.cli import experiments, loggers, runs
from handrec.cli.command_line import CONFIG_KEY
from handrec.cli.main import DRAWN, is_out_of_memory
from handrec.cli.starts import choose_starts
from handrec.cli.trainer_checks import (
    check_lengths,
    check_precision,
    check_processes,
    settle_precision,
)
from handrec.data.datamodule import HandDataModule
from handrec.errors import UserError
from handrec.methods.base import Method
from handrec.methods.loading import class_path_of, read_checkpoint
from handrec.models.compiling import check_compiler
from handrec.models.weights import replaced_weights

#: Which checkpoint a run keeps beside `last.ckpt` (`callbacks.safety`): `best.ckpt` by this metric.
#: `checkpoint:` in a configuration, or `--checkpoint.monitor=...`, changes it.
CHECKPOINT_DEFAULTS = {
    "checkpoint.monitor": "val/pa_mpvpe",
    "checkpoint.mode": "min",
    "checkpoint.filename": "best",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.enable_version_counter": False,
}
#: What Lightning takes for a checkpoint's path without there being such a file.
CHECKPOINT_KEYWORDS = ("best", "last", "hpc")


class RunConfig(SaveConfigCallback):
    """Saves the resolved configuration with the run and inside each of its checkpoints.

    That of a resumed training is the run's own again. A kill leaves the file as it was, or whole.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        if config.get("resume"):
            config = config.clone()
            config.resume, config.ckpt_path = False, None
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)

    @cached_property
    def text(self) -> str:
        """The configuration as YAML."""
        return str(self.parser.dump(self.config, skip_none=False))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask where the run lies: all processes have to, and one writes the file."""
        self.folder = Path(trainer.log_dir or ".")
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file beside its place, and move it there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{self.config_filename}.partial"
        partial.write_text(self.text, encoding="utf-8")
        partial.replace(self.folder / self.config_filename)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"config": yaml.safe_load(self.text)})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the checkpoint stand alone."""
        checkpoint[CONFIG_KEY] = self.text


class StrictParser(LightningArgumentParser):
    """A parser that takes no abbreviated keys: a mistyped weight must not set its neighbour.

    Parsers of nested classes and dataclasses are of their parent's class.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})


class HandCLI(LightningCLI):
    """Runs fit, validate, test or predict on expanded arguments (see `command_line.expand`)."""

    def __init__(self, args: list[str]) -> None:
        quieten()
        self.typed = args
        super().__init__(
            Method,
            HandDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=RunConfig,
            parser_class=StrictParser,
            seed_everything_default=0,
            args=args,
        )

    def init_parser(self, **kwargs: object) -> LightningArgumentParser:
        """Return a parser that raises its errors."""
        return super().init_parser(**kwargs, exit_on_error=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare what a configuration holds beside trainer, model and data."""
        parser.add_argument("--name", type=str, default="debug", help="of the experiment")
        parser.add_argument(
            "--dataset", type=str, default="custom", help="name of the DATA overlay"
        )
        parser.add_argument("--scale", type=str, default="custom", help="name of the SCALE overlay")
        parser.add_argument(
            "--bases", type=list[str], default=[], help="configurations to inherit, in a file only"
        )
        parser.add_argument(
            "--resume", type=bool, default=False, help="go on in the run of --ckpt_path"
        )
        parser.add_argument(
            "--compile",
            type=bool | str,
            default=False,
            help="train with compiled networks: true, or a backend of torch.compile",
        )
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        parser.add_class_arguments(Safety, "safety")
        parser.set_defaults(CHECKPOINT_DEFAULTS)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Build the parsers; unpickle nothing but weights, leave tables to our own reports."""
        super().setup_parser(*args, **kwargs)
        for name, parser in self._subcommand_parsers.items():
            parser.set_defaults(weights_only=True)
            if name in ("validate", "test"):
                parser.set_defaults(verbose=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; the configuration saved with a run stands alone."""
        self.config = parser.parse_args(args)
        chosen = self.config[self.config.subcommand]
        chosen.bases = []
        check_processes(chosen)
        check_precision(chosen.trainer)
        settle_precision(chosen.trainer, self.typed)
        if self.config.subcommand == "fit":
            check_lengths(chosen.trainer)
            if chosen.resume and chosen.trainer.fast_dev_run:
                raise UserError(
                    "--trainer.fast_dev_run tries a few steps anew, --resume goes on: leave one out"
                )

    def _run_subcommand(self, subcommand: str) -> None:
        """Say which part draws if memory runs out: it can draw less at a time."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if is_out_of_memory(error):
                for part in ("model", "data"):
                    if "rasterizer" in (self.chosen.get(f"{part}.init_args") or {}):
                        error.add_note(DRAWN.format(part=part))
                        break
            raise

    def _parse_ckpt_path(self) -> None:
        """Keep the command line's values: Lightning lets the checkpoint's override them."""

    @property
    def chosen(self) -> Namespace:
        """The configuration of the subcommand that runs."""
        config: Namespace = self.config[self.subcommand]
        return config

    @property
    def compiler(self) -> str | None:
        """The backend of torch.compile that the networks are to be trained with."""
        wanted = self.chosen.compile if self.subcommand == "fit" else False
        return "inductor" if wanted is True else wanted or None

    @property
    def logs(self) -> Path:
        """The directory of all runs."""
        return Path(self.chosen.trainer.default_root_dir or ".") / runs.LOGS

    @property
    def keeps_files(self) -> bool:
        """Whether this command is to leave anything on the disk."""
        return not self.chosen.trainer.fast_dev_run and self.chosen.trainer.logger is not False

    def before_instantiate_classes(self) -> None:
        """Find what would end a training late, before the model and the data are built."""
        if self.keeps_files:
            rank_zero_only(loggers.check_writable)(self.logs)  # other machines' disks stay empty
        path = self.chosen.ckpt_path
        if self.subcommand == "fit":
            resumed = runs.run_of(Path(path)) if self.chosen.resume else None
            choose_starts(self.chosen.model.init_args, self.chosen.scale, resumed)
        if names_checkpoint(path) and "://" not in str(path):
            check_checkpoint(Path(path), self.chosen.model.class_path)

    def instantiate_classes(self) -> None:
        """Build everything; what a checkpoint replaces is not read from where it once started."""
        with replaced_weights() if names_checkpoint(self.chosen.ckpt_path) else nullcontext():
            super().instantiate_classes()

    def before_fit(self) -> None:
        """Find what would end a training after its data are drawn, or after an epoch."""
        if self.compiler:
            check_compiler(self.compiler, self.trainer.strategy.root_device)
        if self.trainer.checkpoint_callbacks:
            check_monitor(self.chosen.checkpoint.monitor, self.model)

    def instantiate_trainer(self, **kwargs: object) -> pl.Trainer:
        """Return the trainer with our loggers and callbacks, unless the user chose others."""
        trainer = self.config_init[self.subcommand].trainer
        callbacks = _listed(trainer.callbacks)
        if trainer.enable_progress_bar is not False:
            callbacks += (
                [] if any(isinstance(c, ProgressBar) for c in callbacks) else [progress_bar()]
            )
        checkpoints = trainer.enable_checkpointing is not False and not trainer.fast_dev_run
        if self.subcommand == "fit" and checkpoints:
            callbacks.append(self.config_init[self.subcommand].checkpoint)
            callbacks.append(self.config_init[self.subcommand].safety)  # after the former's best
        if self.subcommand == "fit" and (checkpoints or self.keeps_files):
            callbacks.append(FailureDump())
        if self.compiler:
            callbacks.append(Compiled(self.compiler))
        callbacks.append(EndSummary(self.chosen.name))
        if self.subcommand == "fit" and trainer.logger is None and not trainer.fast_dev_run:
            mirror = self.chosen.scale != "smoke"
            resumed = Path(self.chosen.ckpt_path) if self.chosen.resume else None
            kwargs["logger"] = loggers.run_loggers(
                self.logs, self.chosen.name, mirror=mirror, resumed=resumed
            )
        if self.subcommand != "fit":
            kwargs.update(self.inside_run(trainer))
        kwargs["plugins"] = [*_listed(trainer.plugins), WholeCheckpoints()]
        kwargs["use_distributed_sampler"] = False  # data modules share their rows themselves
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def inside_run(self, trainer: Namespace) -> dict[str, Any]:
        """Return trainer options that make an evaluation write into the run it evaluates.

        Without a logger `trainer.log_dir` is the root directory; the run's own metrics and
        configuration stay as the training left them.
        """
        self.save_config_callback = None
        if trainer.logger is not None:
            return {}
        path = self.chosen.ckpt_path
        run = runs.run_of(Path(path)) if path else None
        return {"logger": False, "default_root_dir": run or self.logs / self.chosen.name}


def _listed(value: Any) -> list[Any]:
    """Return what may be one, several or none as a list."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def names_checkpoint(path: object) -> bool:
    """Return whether weights are loaded; with Lightning's keywords there may be none to load."""
    return bool(path) and path not in CHECKPOINT_KEYWORDS


def check_checkpoint(path: Path, class_path: str) -> None:
    """Raise a UserError unless a checkpoint can be read and was written by a method.

    Args:
        path: of the checkpoint.
        class_path: of the method that is to load it.
    """
    saved = class_path_of(read_checkpoint(path))
    if saved not in (None, class_path):
        raise UserError(f"{path} is a checkpoint of {saved}, not of {class_path}")


def check_monitor(monitor: str | None, method: Method) -> None:
    """Raise a UserError if nothing of the name is logged, as far as that is known.

    Args:
        monitor: name of what chooses the best checkpoint; None for the newest.
        method: to be trained.
    """
    if monitor is None or not method.validated:
        return
    terms = getattr(method, "weights", None)
    training = ["loss", *(vars(terms) if is_dataclass(terms) else ())]
    known = [f"val/{name}" for name in method.validated] + [f"train/{name}" for name in training]
    if monitor not in known:
        close = experiments.did_you_mean(monitor, known)
        there = experiments.listing(known[: len(method.validated)])
        owner = type(method).__name__
        raise UserError(f"checkpoint.monitor: {owner} logs no {monitor}{close}; {there}")


def quieten() -> None:
    """Hide what no user of the suite can act on."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's calls
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in (
        ".*callbacks used to create the checkpoint need to be provided",
        ".*is an instance of .nn.Module. and is already saved during checkpointing",
        ".*does not have many workers",
        "Found .* module.s. in eval mode at the start of training",  # a teacher
        ".*The number of training batches .* is smaller than the logging interval",
        ".*Experiment logs directory .* exists and is not empty",
        "Your `IterableDataset` has `__len__` defined",  # one process reads a video
        "Checkpoint directory .* exists and is not empty",
        "You.re resuming from a checkpoint that ended before the epoch",  # data.sampler can
        ".*isinstance.treespec, LeafSpec.* is deprecated",
        "`broadcast_buffers` is deprecated",  # in a torch newer than the oldest that we take
        r"Detected call of `lr_scheduler.step\(\)` before",  # 16-mixed leaves first steps out
        "Grad strides do not match bucket view strides",  # 1 x 1 convolutions
    ):
        warnings.filterwarnings("ignore", message=f"(?s){message}")
