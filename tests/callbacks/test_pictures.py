"""Pictures of a training: written, logged, and of no effect on it."""

import cv2
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from handrec.callbacks.pictures import Pictures, drawn
from handrec.errors import UserError
from handrec.methods.s2hand_keypoints import S2HANDKeypoints
from handrec.models.hourglass import Hourglass
from handrec.viz.training import heat
from tests.methods.test_handmim_pretrain import Images, batches, method
from tests.methods.test_s2hand import batch, data, hand, method_of  # noqa: F401


class Gallery(CSVLogger):
    """Takes pictures, as W&B's does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.pictures = []

    def log_image(self, key, images, step=None):
        self.pictures.append((key, step, images))


@pytest.mark.parametrize(("every", "shown"), [(1, [0, 1, 2]), (2, [0, 2])])
def test_pictures_of_every_validation_are_kept_and_logged(tmp_path, every, shown):
    gallery = Gallery(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu", logger=gallery, callbacks=[Pictures(every, hands=2)], max_epochs=3,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
        enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(method(), datamodule=Images(2))
    found = sorted(tmp_path.rglob("pictures/*.png"))
    assert [path.name for path in found] == [f"epoch_{epoch:03d}.png" for epoch in shown]
    logged = [(key, step) for key, step, _ in gallery.pictures]
    assert logged == [("pictures/epoch", 2 * (epoch + 1)) for epoch in shown]
    written = cv2.cvtColor(cv2.imread(str(found[0])), cv2.COLOR_BGR2RGB)
    assert (written == gallery.pictures[0][2][0]).all()
    assert gallery.pictures[0][2][0].shape[1] > 4 * 32  # four columns


def test_a_training_does_not_notice():
    pretrain = method().train()
    (images,) = batches(1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in pretrain.state_dict().items()}
    first, second = drawn(pretrain, images), drawn(pretrain, images)
    assert (first == second).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert pretrain.training
    assert not pretrain.teacher.training
    assert all(torch.equal(before[name], value) for name, value in pretrain.state_dict().items())


def test_hands_have_a_column_for_what_is_known_of_them(hand, batch):  # noqa: F811
    s2hand = method_of(hand)
    whole = drawn(s2hand, batch)
    plain = drawn(method_of(hand, appearance=None), batch)
    blind = drawn(s2hand, batch._replace(confidence=torch.zeros(8, 21)))
    cell = whole.shape[1] // 5
    assert abs(whole.shape[1] - plain.shape[1] - cell) < 10  # no texture
    assert abs(whole.shape[1] - blind.shape[1] - cell) < 10  # no keypoints
    assert (whole[:, : cell - 6] == plain[:, : cell - 6]).all()
    keypoints = S2HANDKeypoints(Hourglass(1, 16, 2, 1, upsample=False))
    assert abs(drawn(keypoints, batch).shape[1] - 3 * cell) < 20
    assert drawn(pl.LightningModule(), batch) is None


def test_attention_is_brightest_where_it_is_most():
    share = torch.zeros(1, 4, 4)
    share[0, 1, 2] = 1.0
    shown = heat(share, torch.zeros(1, 3, 32, 32))[0].sum(0)
    y, x = divmod(int(shown.argmax()), 32)
    assert 8 <= y < 16
    assert 16 <= x < 24


def test_none_are_refused():
    with pytest.raises(UserError, match="hands"):
        Pictures(hands=0)
