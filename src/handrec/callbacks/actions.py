"""What Lightning says it is doing, for callbacks that time it."""

from collections.abc import Callable
from typing import Any, Literal

from pytorch_lightning.profilers import Profiler

#: Stages of a training step, as tables call them.
Stage = Literal["data", "draw", "forward", "backward", "optimizer"]

#: By the end of the name that Lightning gives an action, the stage it is.
STAGES: dict[str, Stage] = {
    "train_dataloader_next": "data",
    ".batch_to_device": "draw",
    "Strategy.training_step": "forward",
    "Strategy.backward": "backward",
    ".optimizer_step": "optimizer",
}


def stage_of(action: str) -> Stage | None:
    """Return the stage that an action is; most are none."""
    return next((stage for end, stage in STAGES.items() if action.endswith(end)), None)


class Overheard(Profiler):
    """A trainer's profiler whose starts and stops of a step's stages somebody else hears, too.

    Args:
        profiler: the trainer's own, which goes on as before.
        started: called with a stage when it begins.
        stopped: called with a stage when it ends.
    """

    def __init__(
        self,
        profiler: Profiler,
        started: Callable[[Stage], None],
        stopped: Callable[[Stage], None],
    ) -> None:
        super().__init__()
        self.profiler, self.started, self.stopped = profiler, started, stopped
        self._known: dict[str, Stage | None] = {}

    def _heard(self, action: str) -> Stage | None:
        if action not in self._known:
            self._known[action] = stage_of(action)
        return self._known[action]

    def start(self, action_name: str) -> None:
        """Note the start of an action."""
        self.profiler.start(action_name)
        if (stage := self._heard(action_name)) is not None:
            self.started(stage)

    def stop(self, action_name: str) -> None:
        """Note the end of an action."""
        if (stage := self._heard(action_name)) is not None:
            self.stopped(stage)
        self.profiler.stop(action_name)

    def summary(self) -> str:
        """Return the own profiler's summary."""
        return self.profiler.summary()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Set the own profiler up."""
        self.profiler.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        """End the own profiler."""
        self.profiler.teardown(stage)

    def describe(self) -> None:
        """Have the own profiler print what it found."""
        self.profiler.describe()


def overhear(
    trainer: Any, started: Callable[[Stage], None], stopped: Callable[[Stage], None]
) -> None:
    """Have a step's stages told to somebody, beside the trainer's profiler."""
    trainer.profiler = Overheard(trainer.profiler, started, stopped)


def leave(trainer: Any) -> None:
    """Give the trainer its profiler back: the one before the latest :func:`overhear`."""
    if isinstance(trainer.profiler, Overheard):
        trainer.profiler = trainer.profiler.profiler
