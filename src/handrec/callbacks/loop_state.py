"""What Lightning's loops have counted, written down as it is between two steps.

Lightning saves from within a step, a validation or the end of an epoch, and guesses from the
counters where that was. Some guesses are wrong: a validation is left out, a step is counted twice,
and with ``max_steps`` an epoch that was over is gone through again without a batch. The counters of
a checkpoint that is written between two steps, or two epochs, say so here, and nothing is guessed.
"""

from typing import Any

import pytorch_lightning as pl

#: Of a checkpoint whose counters are those between two steps.
BETWEEN = "between_steps"


def settle(checkpoint: dict[str, Any], begun: bool) -> None:
    """Make the counters of a checkpoint those between two steps, or two epochs.

    Args:
        checkpoint: of a training; changed.
        begun: whether the coming step is counted already: it is not to be.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False  # of the coming step, which will tell
    if begun:
        for counts in (batches["total"], batches["current"]):
            counts["ready"] -= 1
    elif epochs["current"]["processed"] == epochs["current"]["ready"]:  # the epoch is over
        for counts in (epochs["total"], epochs["current"]):
            counts["completed"] = counts["processed"]
        for name, progress in loops.items():
            if name.startswith("epoch_loop."):
                _forget(progress)
        validated = loops["epoch_loop.val_loop.batch_progress"]  # in all of one epoch
        validated["total"] = dict.fromkeys(validated["total"], 0)
    checkpoint[BETWEEN] = True


def _forget(progress: dict[str, Any]) -> None:
    """Take what was counted within the epoch back to 0."""
    for name, value in progress.items():
        if name == "current":
            progress[name] = dict.fromkeys(value, 0)
        elif isinstance(value, dict):
            _forget(value)


def go_on(trainer: pl.Trainer) -> None:
    """Have a resumed training begin with a step: what was to be validated before it has been."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._should_check_val_fx = lambda fetcher: False


def gone_on(trainer: pl.Trainer) -> None:
    """Leave it to Lightning again when to validate."""
    loop: Any = trainer.fit_loop.epoch_loop
    vars(loop).pop("_should_check_val_fx", None)


def is_last_step(trainer: pl.Trainer) -> bool:
    """Return whether the training ends after the step that is being taken."""
    loop: Any = trainer.fit_loop
    if loop.max_steps != -1 and trainer.global_step >= loop.max_steps:
        return True
    epochs = loop.epoch_progress.current.processed + 1
    is_last_epoch = loop.max_epochs is not None and 0 < loop.max_epochs <= epochs
    return bool(is_last_epoch and loop.epoch_loop._num_ready_batches_reached())
