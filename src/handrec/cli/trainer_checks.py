"""Refuses what Lightning's Trainer would take and not mean, or answer with a traceback.

It also leaves half precision to the CPUs that have it.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning.strategies import StrategyRegistry

from handrec.cli.experiments import did_you_mean, say
from handrec.errors import UserError

#: Of numpy's random numbers.
SEEDS = 2**32
#: Of a Trainer, that methods can be trained and evaluated in.
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
#: What torch calls the instructions for bfloat16, on x86 and on ARM.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16")


def check_processes(chosen: Namespace) -> None:
    """Refuse a seed, a strategy or a number of processes that there cannot be.

    Args:
        chosen: configuration of a subcommand.

    Raises:
        UserError: names the option.
    """
    seed, trainer = chosen.seed_everything, chosen.trainer
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed < SEEDS:
        raise UserError(f"--seed_everything={seed}: it is 0 to {SEEDS - 1}")
    strategy = trainer.strategy
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy.lower() not in known:
        close = did_you_mean(strategy, known)
        raise UserError(f"--trainer.strategy={strategy} is none{close}; auto and ddp will do")
    _at_least(trainer, "num_nodes", 1)
    if not re.fullmatch(r"-?\d+", str(trainer.devices)):  # auto, or some by their numbers
        return
    devices = int(trainer.devices)
    if devices < -1 or devices == 0:
        raise UserError(f"--trainer.devices={devices}: it is at least 1, or -1 for all GPUs")
    if devices == -1 and _on_cpu(trainer.accelerator):
        raise UserError("--trainer.devices=-1 means all GPUs: on a CPU say how many processes")


def _on_cpu(accelerator: Any) -> bool:
    """Return whether a Trainer will be on the CPU."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def check_precision(trainer: Namespace) -> None:
    """Refuse weights in other precisions than float32.

    Cameras, rotations and losses are float32 whatever autocast does; weights of another kind would
    meet them with a traceback.

    Args:
        trainer: options of the Trainer.

    Raises:
        UserError: names the option.
    """
    precision = trainer.precision
    if precision is not None and str(precision) not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UserError(f"--trainer.precision={precision}: weights are float32; give {known}")


def settle_precision(trainer: Namespace, typed: Iterable[str]) -> None:
    """Train and evaluate in float32 on a CPU that would only imitate half precision.

    Without its own instructions a matrix product in bfloat16 takes some 20 to 70 times as long as
    in float32. Who types ``--trainer.precision=`` gets it; a file's is as a scale's, as it may have
    been written where half precision is fast: a GPU's run is evaluated here, too.

    Args:
        trainer: options of the Trainer; changed.
        typed: the command line.
    """
    half = str(trainer.precision) in ("bf16-mixed", "16-mixed")
    if not half or has_bf16() or not _on_cpu(trainer.accelerator):
        return
    if any(argument.partition("=")[0] == "--trainer.precision" for argument in typed):
        return
    say(f"this CPU has no bfloat16: 32-true instead of {trainer.precision}, which would be slow")
    trainer.precision = "32-true"


def has_bf16() -> bool:
    """Return whether this CPU has instructions for bfloat16."""
    tell: Any = getattr(torch.cpu, "get_capabilities", dict)  # not in the oldest torch taken
    capabilities = tell()
    return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)


def check_lengths(trainer: Namespace) -> None:
    """Refuse a training without a step, and numbers of it that cannot be meant.

    Args:
        trainer: options of the Trainer.

    Raises:
        UserError: names the option.
    """
    for name in ("max_epochs", "max_steps"):
        if getattr(trainer, name) == 0:
            raise UserError(f"--trainer.{name}=0: nothing would be trained (-1 is no limit)")
    batches = trainer.limit_train_batches
    if batches is not None and not batches > 0:
        raise UserError(f"--trainer.limit_train_batches={batches}: nothing would be trained")
    _at_least(trainer, "accumulate_grad_batches", 1)
    _at_least(trainer, "gradient_clip_val", 0)


def _at_least(trainer: Namespace, name: str, least: int) -> None:
    number = getattr(trainer, name)
    if number is not None and not number >= least:
        raise UserError(f"--trainer.{name}={number}: it is at least {least}")
