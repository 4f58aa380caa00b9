"""Small data sets in the layouts of published ones, written by the suite itself."""

from functools import cache
from tempfile import mkdtemp

import torch

from handrec.data.synthetic import SyntheticHands
from handrec.data.tables import SceneTable
from handrec.hand.openhand import OpenHand
from handrec.render.warp_backend import WarpRasterizer
from handrec.types import HandBatch
from tests.standins import standin_mano

SIZE = 96


@cache
def hand_model(name: str):
    return standin_mano() if name == "Mano" else OpenHand()


@cache
def drawn(hand: str = "Mano", videos: int = 0) -> HandBatch:
    """Return 8 labelled pictures, or some videos of 4 frames."""
    data = SyntheticHands(
        hand_model(hand), WarpRasterizer(), image_size=SIZE, train_size=8, batch_size=8,
        val_size=1, test_size=1, video_sequences=max(videos, 1), video_frames=4,
        test_splits=("video",), cache_dir=mkdtemp(),
    )  # fmt: skip
    split = "video" if videos else "train"
    data.maker.make(split)
    data.tables[split] = SceneTable.read(data.maker.path(split))
    return data.label(data.tables[split].rows(torch.arange(len(data.tables[split]))), split)


def rows(batch: HandBatch, start: int, stop: int) -> HandBatch:
    return HandBatch(*(field[start:stop] for field in batch))


def prepared(data, stage: str = ""):
    data.setup(stage)
    return data


def everything(data, part: str) -> HandBatch:
    """Return all samples of a part as one batch."""
    split = next(split for split, name in data.parts.items() if name == part)
    crops = data.crops(split)
    crops.samples = torch.arange(len(data.tables[part]))
    batch = crops.__getitems__(list(range(len(crops))))
    assert not isinstance(batch, str), batch
    return data.label(batch)


def compare(loaded: HandBatch, written: HandBatch, names, rows=slice(None), tolerance=1e-5) -> None:
    for name in names:
        found, expected = getattr(loaded, name)[rows], getattr(written, name)
        assert found.shape == expected.shape, name
        assert (found - expected).abs().max() <= tolerance, name
