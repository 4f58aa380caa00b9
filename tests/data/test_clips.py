"""Clips: of one sequence, a stride apart, never joined, the same whenever they are asked for."""

import json
import logging
import shutil
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.sets import SIZE, drawn, hand_model, rows

from handrec.data.augment import Augmentation
from handrec.data.clips import Clip, ClipTable, PicturesAndClips
from handrec.data.coco_hands import CocoHands
from handrec.data.columns import held_out_videos, of_video, videos_by_name
from handrec.data.detected import DetectedHands
from handrec.data.dexycb import DexYCB
from handrec.data.folder import Folder
from handrec.data.ho3d import HO3D
from handrec.data.interhand26m import InterHand26M
from handrec.data.layouts import COCO_NAMES, write_ho3d
from handrec.data.layouts_sides import write_dexycb, write_interhand26m
from handrec.data.mixed import MixedSets
from handrec.data.sampler import Rows
from handrec.errors import UserError
from handrec.losses.temporal import find_clips


def shuffled_frames(videos, frames, missing, seed=0):
    """Return sequences and frame numbers of videos with some frames missing, in any order."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.arange(videos).repeat_interleave(frames) * 7 + 3
    frame = torch.arange(frames).repeat(videos) * 2 + 5
    chosen = torch.randperm(len(frame), generator=generator)[missing:]
    return sequence[chosen], frame[chosen]


@pytest.mark.parametrize("clip", [Clip(2, 2), Clip(3, 2), Clip(3, 4), Clip(4, 6)], ids=str)
def test_clips_are_those_that_a_naive_search_finds(clip):
    sequence, frame = shuffled_frames(4, 15, missing=12)
    place = {(int(s), int(f)): i for i, (s, f) in enumerate(zip(sequence, frame, strict=True))}
    expected = set()
    for name, number in place:
        wanted = [(name, number + k * clip.stride) for k in range(clip.length)]
        if all(at in place for at in wanted):
            expected.add(tuple(place[at] for at in wanted))
    table = ClipTable(sequence, frame, clip)
    assert {tuple(row) for row in table.rows.tolist()} == expected
    assert len(table.rows) == len(expected) == int(table.counts.sum())
    without = 4 - len({int(sequence[row[0]]) for row in expected})
    assert table.lacking == without
    assert table.step == 2


def test_a_video_that_goes_on_in_the_next_ones_numbers_is_two():
    table = ClipTable(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3]), Clip(3))
    assert not len(table.rows)
    assert table.lacking == 2
    table = ClipTable(torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(3).repeat(2), Clip(3))
    assert table.rows.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_longer_videos_are_drawn_more_often_and_none_twice_before_all():
    sequence = torch.tensor([0] * 3 + [1] * 9)
    frame = torch.cat([torch.arange(3), torch.arange(9)])
    table = ClipTable(sequence, frame, Clip(2))  # 2 clips and 8
    generator = torch.Generator().manual_seed(0)
    ones = torch.stack([table.draw(1, generator)[0] for _ in range(1000)])
    counts = ones[:, 0].bincount(minlength=12).float() / 1000
    assert torch.equal(counts.nonzero().flatten(), torch.tensor([0, 1, *range(3, 11)]))
    assert (counts[counts > 0] - 0.1).abs().max() < 0.04  # each as likely as any other
    for _ in range(50):
        assert set(sequence[table.draw(2, generator)[:, 0]].tolist()) == {0, 1}


class Seen:
    """Rows that are handed back as they were asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, indices):
        return torch.tensor(indices)


@pytest.mark.parametrize("videos", [1, 2, 5])
@pytest.mark.parametrize("clip", [Clip(3, 1), Clip(4, 2)], ids=str)
def test_nothing_in_a_batch_joins(videos, clip):
    """The losses see as many clips as were drawn, each as long and as wide, and single pictures."""
    sequence, frame = shuffled_frames(videos, 12, missing=videos)
    frame = (frame - 5) // 2
    table, generator = ClipTable(sequence, frame, clip), torch.Generator().manual_seed(0)
    data = PicturesAndClips(Seen(len(frame)), torch.arange(len(frame)), table, count=4)
    for seed in range(40):
        singles = torch.randperm(len(frame), generator=generator)[:6].tolist()
        batch = data.__getitems__(Rows(singles, seed))
        assert len(batch) == 6 + 4 * clip.length
        found = find_clips(sequence[batch], frame[batch])
        assert int(found.in_clip.sum()) == 4 * clip.length
        starts = (found.first[found.in_clip].unique()).tolist()
        assert len(starts) == 4
        for start in starts:
            one = batch[start : start + clip.length]
            assert len(sequence[one].unique()) == 1
            assert frame[one].diff().tolist() == [clip.stride] * (clip.length - 1)
        assert sorted(batch[~found.in_clip].tolist()) == sorted(singles)


@pytest.fixture(scope="module")
def ho3d(tmp_path_factory):
    """Four videos of four frames; one of the training's lacks its third."""
    root, batch = tmp_path_factory.mktemp("clips") / "set", drawn("OpenHand", 4)
    write_ho3d(root, [rows(batch, 0, 12)], [rows(batch, 12, 16)], hand_model("OpenHand"), "v3")
    lines = (root / "train.txt").read_text().split()
    (root / "train.txt").write_text("\n".join(line for line in lines if line != lines[2]))
    return root


def of_ho3d(root, rank=0, processes=1, **options):
    options = {
        "image_size": SIZE, "batch_size": 5, "num_workers": 0, "clip": Clip(2, 1, 0.8),
        "hand": hand_model("OpenHand"), "val_share": 0.2,
    } | options  # fmt: skip
    data = HO3D(str(root), "v3", cache_dir=str(root.parent / "cache"), **options)
    data.setup("fit")
    data.trainer = Mock(spec=pl.Trainer, global_rank=rank, world_size=processes, overfit_batches=0)
    data.trainer.fit_loop = Mock()
    data.trainer.fit_loop.epoch_loop.batch_progress.total.ready = 0
    return data


def batches_of(data, epochs=1):
    loader = data.train_dataloader()
    return [data.label(raw) for _ in range(epochs) for raw in loader]


def test_ho3d_gives_pictures_and_clips(ho3d):
    seen = set()
    data = of_ho3d(ho3d)
    table = data.tables["training"]
    for _ in range(4):
        for batch in batches_of(data):
            assert len(batch.image) == 5
            found = find_clips(batch.sequence, batch.frame)
            assert int(found.in_clip.sum()) == 4  # two clips of two; one single picture
            for start in found.first[found.in_clip].unique().tolist():
                assert batch.sequence[start] == batch.sequence[start + 1]
                assert batch.frame[start + 1] - batch.frame[start] == 1
                seen.add((int(batch.sequence[start]), int(batch.frame[start])))
            assert torch.equal(batch.sequence, table.sequence[batch.sample_id])
            assert torch.equal(batch.frame, table.frame[batch.sample_id])
            flat = batch.joints_3d @ batch.intrinsics.mT
            seen_at = flat[..., :2] / flat[..., 2:]
            torch.testing.assert_close(seen_at, batch.keypoints_2d, atol=1e-2, rtol=0)
    in_training = set(table.sequence[data.crops("train").samples].tolist())
    gap = {(0, 1), (0, 2)}  # frame 2 of video 0 is not there
    assert seen <= {(s, f) for s in in_training for f in range(3)} - gap
    assert len(in_training) == 2


def test_a_clip_is_augmented_as_one(ho3d):
    plain, moved = of_ho3d(ho3d), of_ho3d(ho3d, augmentation=Augmentation())
    for before, after in zip(batches_of(plain), batches_of(moved), strict=True):
        assert torch.equal(before.sample_id, after.sample_id)
        turned = after.pose[:, 0] @ before.pose[:, 0].mT
        grown = after.intrinsics[:, 0, 0] / before.intrinsics[:, 0, 0]
        first = find_clips(before.sequence, before.frame).first
        torch.testing.assert_close(turned, turned[first])
        torch.testing.assert_close(grown, grown[first])
        own = turned[first.unique()]
        assert len(own) == 3
        assert (own[:, None] - own[None]).abs().amax((2, 3)).fill_diagonal_(1).min() > 1e-3


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_training_has_the_batches_it_would_have_had(ho3d, workers):
    options = {"augmentation": Augmentation(), "num_workers": workers}
    whole = batches_of(of_ho3d(ho3d, **options))
    torch.manual_seed(99)
    resumed = of_ho3d(ho3d, **options)
    rest = iter(resumed.train_dataloader())  # Lightning has it before it knows how far it is
    resumed.trainer.fit_loop.epoch_loop.batch_progress.total.ready = 1
    assert len(whole) > 2
    assert same(whole[1], resumed.label(next(rest)))
    assert same(whole[2], resumed.label(next(rest)))
    assert not same(whole[1], whole[2])


def test_processes_differ(ho3d):
    first, second = (batches_of(of_ho3d(ho3d, rank=r, processes=2))[0] for r in range(2))
    assert not torch.equal(first.sample_id, second.sample_id)
    draws = [
        [b.sample_id.tolist() for b in batches_of(of_ho3d(ho3d, rank=r, processes=2), 3)]
        for r in range(2)
    ]
    assert draws[0] != draws[1]


def test_videos_without_room_are_counted(ho3d, caplog):
    with caplog.at_level(logging.WARNING):
        data = of_ho3d(ho3d, clip=Clip(4), val_share=0.01)
        data.train_dataloader()
    assert "ho3d_v3: 1 of 2 videos have no 4 frames with numbers 1 apart: no clips" in caplog.text


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (Clip(5, 1, 0.5), "has 5 frames with numbers 1 apart: the longest has 4"),
        (Clip(2, 4, 0.5), "has 2 frames with numbers 4 apart: the longest has 4"),
    ],
)
def test_a_set_without_room_is_refused(ho3d, clip, said):
    with pytest.raises(UserError, match=said):
        of_ho3d(ho3d, clip=clip, batch_size=6).train_dataloader()


def test_what_has_no_clips_is_refused_before_it_is_read():
    with pytest.raises(UserError, match="folder: its pictures are of no videos"):
        Folder("nowhere", clip=Clip())
    with pytest.raises(UserError, match="a batch of 4 has no room for a clip of 5 frames"):
        HO3D("nowhere", clip=Clip(5), batch_size=4)


def test_a_mixture_brings_the_clips_of_its_sets(ho3d):
    """Three pictures of one set, then a clip of two and a picture of the other."""
    common = {"num_workers": 0, "cache_dir": str(ho3d.parent / "cache")}
    sets = {
        "pictures": Folder(str(ho3d / "evaluation"), **common),
        "videos": HO3D(str(ho3d), "v3", clip=Clip(2), val_share=0.2, **common),
    }
    data = MixedSets(sets, batch_size=6, image_size=SIZE)
    assert data.clip == Clip(2)
    data.setup("fit")
    for loaded, *_ in data.train_dataloader():
        batch = data.on_after_batch_transfer(loaded, 0)
        found = find_clips(batch.sequence, batch.frame)
        assert found.in_clip[:3].sum() == 0
        assert found.in_clip[3:].sum() == 2


def test_label_share_leaves_clips_alone(ho3d):
    data = of_ho3d(ho3d, label_share=0.2)
    single, clips = set(), set()
    for batch in batches_of(data, 4):
        found = find_clips(batch.sequence, batch.frame)
        single |= set(batch.sample_id[~found.in_clip].tolist())
        clips |= set(batch.sample_id[found.in_clip].tolist())
    assert len(single) < 3 < len(clips)


def test_dexycb_leaves_out_clips_over_missing_frames(tmp_path):
    batch, root = drawn("OpenHand"), tmp_path / "set"
    write_dexycb(root, [rows(batch, 0, 6)], [rows(batch, 6, 8)], hand_model("OpenHand"))
    for folder in sorted((root / "20200700-subject-01").iterdir())[:3]:
        (camera,) = (path for path in folder.iterdir() if path.is_dir())
        for number in range(1, 5):
            shutil.copy(camera / "color_000000.jpg", camera / f"color_{number:06d}.jpg")
            labels = dict(np.load(camera / "labels_000000.npz"))
            if number == 2:
                labels["joint_3d"] = labels["joint_3d"] * 0 - 1  # no hand in it
            np.savez(camera / f"labels_{number:06d}.npz", **labels)
        meta = folder / "meta.yml"
        meta.write_text(meta.read_text().replace("num_frames: 1", "num_frames: 5"))
    clip = Clip(2, 1, 0.6)
    data = DexYCB(str(root), num_workers=0, batch_size=4, image_size=SIZE, clip=clip,
                  cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.setup("fit")
    starts = set()
    for raw in data.train_dataloader():
        found = find_clips(raw.sequence, raw.frame)
        assert found.in_clip.any()
        for start in found.first[found.in_clip].unique().tolist():
            starts.add(int(raw.frame[start]))
            assert raw.labels.is_left[start] == raw.labels.is_left[start + 1]
    assert starts == {0, 3}


def test_hands_of_one_image_are_two_sequences(tmp_path):
    """InterHand2.6M: every picture shows the same two hands, numbered 3 apart, one missing."""
    batch, root = drawn("OpenHand"), tmp_path / "set"
    write_interhand26m(root, [rows(batch, 0, 4)], [rows(batch, 4, 8)], hand_model("OpenHand"))
    folder = root / "annotations/train"
    parts = {
        name: json.loads((folder / f"InterHand2.6M_train_{name}.json").read_text())
        for name in ("data", "joint_3d", "MANO_NeuralAnnot")
    }
    image, annotation = parts["data"]["images"][0], parts["data"]["annotations"][0]
    joints = parts["joint_3d"]["0"]["0"]["world_coord"]
    world = {"world_coord": joints[:21] + joints[:21]}  # one over the other
    numbers = [0, 3, 9, 12]
    parts["data"] = {
        "images": [image | {"id": i, "frame_idx": f} for i, f in enumerate(numbers)],
        "annotations": [
            annotation
            | {"id": i, "image_id": i, "hand_type": "interacting", "joint_valid": [1] * 42}
            for i in range(4)
        ],
    }
    parts["joint_3d"] = {"0": {str(f): world for f in numbers}}
    for name, content in parts.items():
        (folder / f"InterHand2.6M_train_{name}.json").write_text(json.dumps(content))
    options = {"interacting": True, "num_workers": 0, "batch_size": 5, "image_size": SIZE}
    cache = str(tmp_path / "cache")
    data = InterHand26M(str(root), clip=Clip(2, 3, 0.8), cache_dir=cache, **options)
    data.setup("fit")
    table = data.tables["train"]
    left, right = (table.sequence[table.labels.is_left == side].unique() for side in (1, 0))
    assert len(left) == len(right) == 1
    assert left != right
    for raw in data.train_dataloader():
        found = find_clips(raw.sequence, raw.frame)
        starts = found.first[found.in_clip].unique()
        assert set(raw.frame[starts].tolist()) <= {0, 9}
        assert set(raw.sequence[starts].tolist()) == {int(left), int(right)}
    other = InterHand26M(str(root), clip=Clip(2, 1, 0.8), cache_dir=cache, **options)
    other.setup("fit")
    with pytest.raises(UserError, match=r"most lie 3 apart, --data.init_args.clip.stride=3"):
        other.train_dataloader()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("cat/0007.jpg", ("cat/*", 7)),
        ("a_0012.png", ("a_*", 12)),
        ("cam2/IMG 3-hd.jpg", ("cam2/IMG *-hd", 3)),
        ("cam2/x.jp2", ("cam2/*x", None)),
    ],
)
def test_frames_are_numbered_by_their_names(file, expected):
    video, number = of_video(file)
    assert (video.removeprefix("./"), number) == expected


def test_sequences_of_named_frames():
    files = ["a/1.jpg", "a/2.jpg", "a/2.jpg", "a/3.jpg", "a/3.jpg", "b/1.jpg", "x.jpg"]
    sides = ["left", "left", "right", "right", "right", "left", "left"]
    sequence, frame = videos_by_name(files, sides)
    assert frame.tolist() == [1, 2, 2, 0, 0, 1, 0]
    one, same_one, other, *rest = sequence.tolist()
    assert one == same_one != other
    assert len({one, other, *rest}) == 6  # two right hands in one frame: neither is of a video


def test_whole_videos_validate_and_the_end_of_a_single_one():
    files = [f"{v}/{f}.jpg" for v in "abcd" for f in range(10)]
    chosen = held_out_videos(files, 0.2).view(4, 10)
    assert chosen.any(1).sum() == chosen.all(1).sum() == 1
    shuffled = [f"v_{f:03d}.jpg" for f in (5, 3, 0, 9, 8, 1, 2, 4, 7, 6)]
    ends = held_out_videos(shuffled, 0.2)
    assert [file for file, end in zip(shuffled, ends, strict=True) if end] == [
        "v_009.jpg", "v_008.jpg",
    ]  # fmt: skip


@pytest.fixture
def frames(tmp_path):
    """Two videos of six frames, one of them without its fourth, and a picture of none."""
    files = [f"{video}/{number:04d}.jpg" for video in "ab" for number in range(6)]
    files = [*(file for file in files if file != "b/0003.jpg"), "cover.jpg"]
    random = np.random.default_rng(0)
    for file in files:
        (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        picture = random.integers(0, 255, (50, 60, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "set" / file), picture)
    return tmp_path / "set", files, random.uniform(5, 45, (len(files), 21, 2)).tolist()


@pytest.mark.parametrize("form", ["detected", "coco_hands"])
def test_frames_of_ones_own_videos_have_clips(frames, form):
    root, files, points = frames
    options = {"num_workers": 0, "batch_size": 6, "image_size": 32, "val_share": 0.0,
               "cache_dir": str(root.parent / "cache")}  # fmt: skip
    if form == "detected":
        ones = [[1.0] * 21] * len(files)
        (root / "d.json").write_text(json.dumps([points, ones, files]))
        build = DetectedHands
    else:
        images = [{"id": i, "file_name": file} for i, file in enumerate(files)]
        annotations = [
            {"id": i, "image_id": i, "keypoints": np.c_[p, np.ones(21)].flatten().tolist()}
            for i, p in enumerate(points)
        ]
        names = {"id": 1, "keypoints": COCO_NAMES}
        content = {"images": images, "annotations": annotations, "categories": [names]}
        (root / "d.json").write_text(json.dumps(content))
        build = CocoHands
    plain = build(str(root), **options)
    plain.setup("fit")
    (table,) = plain.tables.values()
    assert table.sequence.tolist() == list(range(12))  # photos, where nobody asks for clips
    data = build(str(root), clip=Clip(3, 1, 0.6), **options)
    data.setup("fit")
    (table,) = data.tables.values()
    starts = set()
    for _ in range(8):
        for raw in data.train_dataloader():
            found = find_clips(raw.sequence, raw.frame)
            assert int(found.in_clip.sum()) == 3
            first = int(found.first[found.in_clip][0])
            names = [table.files[i].decode() for i in raw.sample_id[first : first + 3].tolist()]
            assert len({of_video(name)[0] for name in names}) == 1
            numbers = [of_video(name)[1] for name in names]
            assert np.diff(numbers).tolist() == [1, 1]
            starts.add((names[0].split("/")[-2], numbers[0]))
    assert starts <= {("a", f) for f in range(4)} | {("b", 0)}
    assert len(starts) > 2
