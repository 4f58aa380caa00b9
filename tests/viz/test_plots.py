"""Plots: looked at by counting the pixels of a curve's colour."""

import numpy as np
import torch

from handrec.viz.plots import pck_plot

THRESHOLDS = torch.linspace(0, 0.05, 100)


def rows_of(picture, colour):
    """Return the mean height (0 at the bottom) of the pixels of nearly this colour."""
    near = np.abs(picture.astype(int) - colour).max(-1) < 30
    near[-120:] = False  # the legend and the axis
    return picture.shape[0] - np.argwhere(near)[:, 0].mean()


def test_a_better_method_lies_above_a_worse_one():
    good, bad = (THRESHOLDS / 0.05) ** 0.2, (THRESHOLDS / 0.05) ** 1.0
    picture = pck_plot({"joints": {"good": good, "bad": bad}}, THRESHOLDS)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    swapped = pck_plot({"joints": {"bad": bad, "good": good}}, THRESHOLDS)
    assert rows_of(picture, (0, 0x72, 0xB2)) > rows_of(swapped, (0, 0x72, 0xB2)) + 20


def test_panels_lie_side_by_side():
    curves = {"method": THRESHOLDS / 0.05}
    one = pck_plot({"joints": curves}, THRESHOLDS)
    two = pck_plot({"joints": curves, "mesh": curves}, THRESHOLDS)
    assert two.shape[0] == one.shape[0]
    assert two.shape[1] == 2 * one.shape[1]


def test_curves_of_absent_labels_leave_an_empty_panel():
    picture = pck_plot({"mesh": {"method": torch.full((100,), torch.nan)}}, THRESHOLDS)
    assert picture.min() < 100 < picture.mean()
