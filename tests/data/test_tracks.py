import numpy as np
import pytest

from handrec.data.boxes import HandBox
from handrec.data.detection import HandDetector
from handrec.data.tracks import FollowedBoxes, LinkedBoxes, overlap

PICTURE = np.zeros((200, 300, 3), np.uint8)


def box(x, y, side=60):
    return float(x), float(y), float(x + side), float(y + side)


def test_overlap_is_intersection_over_union():
    assert overlap(box(0, 0, 10), box(5, 0, 10)) == pytest.approx(50 / 150)
    assert overlap(box(0, 0, 10), box(10, 0, 10)) == 0
    assert overlap(box(0, 0, 4), box(0, 0, 4)) == 1


def test_hands_keep_their_numbers_whatever_their_order_and_sides_never_mix():
    frames = {
        0: [HandBox(box(10, 10), "right"), HandBox(box(150, 10), "right")],
        1: [HandBox(box(155, 12), "right"), HandBox(box(14, 9), "right")],
        2: [HandBox(box(15, 9), "left"), HandBox(box(20, 9), "right")],
        4: [HandBox(box(20, 9), "right")],
    }
    source = LinkedBoxes(frames)
    tracks = [[hand.track for hand in source.boxes(i, PICTURE)] for i in range(5)]
    assert tracks == [[0, 1], [1, 0], [2, 0], [], [3]]


class Finds(HandDetector):
    def detect(self, picture):
        return [HandBox(box(*picture[0, 0, :2].tolist()), "left")]


def test_a_detector_is_asked_for_every_frame():
    source = LinkedBoxes(None, Finds())
    for x in (10, 14, 200):
        (hand,) = source.boxes(0, np.full_like(PICTURE, x))
        assert (hand.box, hand.side) == (box(x, x), "left")
    assert hand.track == 1  # too far for the same hand


def test_a_followed_box_goes_where_the_hand_was_found():
    source = FollowedBoxes({0: [HandBox(box(100, 50), "left")], 3: [HandBox(box(0, 0), "right")]},
                           "v.mp4")  # fmt: skip
    assert [hand.track for hand in source.boxes(0, PICTURE)] == [0]
    source.follow(0, 0, box(110, 58))
    (hand,) = source.boxes(1, PICTURE)
    assert hand.box == pytest.approx(box(110, 58))
    assert hand.side == "left"
    assert [hand.track for hand in source.boxes(3, PICTURE)] == [0, 1]


def test_a_followed_box_changes_its_size_slowly():
    source = FollowedBoxes({0: [HandBox(box(100, 50), "left")]}, "v.mp4")
    source.boxes(0, PICTURE)
    source.follow(0, 0, box(120, 70, 20))
    left, top, right, bottom = source.boxes(1, PICTURE)[0].box
    assert (left + right, top + bottom) == pytest.approx((260, 160))
    assert right - left == pytest.approx(60 / 1.05)


@pytest.mark.parametrize("found", [None, box(400, 50), box(-90, 50), box(100, 230)])
def test_a_hand_that_is_lost_is_named_and_not_looked_for_again(found):
    source = FollowedBoxes({0: [HandBox(box(100, 50), "left")]}, "v.mp4")
    source.boxes(0, PICTURE)
    source.follow(0, 7, found)
    assert source.lost == ["v.mp4: frame 7: left hand lost"]
    assert source.boxes(8, PICTURE) == []
    source.follow(0, 8, box(0, 0))  # of a batch still under way


def test_a_box_that_only_shrinks_ends():
    source = FollowedBoxes({0: [HandBox(box(100, 50, 80), "right")]}, "v.mp4")
    for frame in range(60):
        for hand in source.boxes(frame, PICTURE):
            source.follow(hand.track, frame, box(135, 85, 1))
    assert len(source.lost) == 1
