"""Plots as pictures: matplotlib without its global state."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

#: Colours and dashes: the first curve of a panel stands out, the second, a baseline, is grey.
_LINES = (("#0072b2", "-"), ("#777777", "--"), ("#d55e00", "-."), ("#009e73", ":"))


def pck_plot(
    panels: Mapping[str, Mapping[str, Float[Tensor, " t"]]], thresholds: Float[Tensor, " t"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return PCK curves, one panel beside the other.

    Args:
        panels: by title, curves by label: the share of points with an error up to each threshold.
        thresholds: metres; shown in millimetres.
    """
    figure = Figure(figsize=(4.4 * len(panels), 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, title, curves, 1000 * thresholds)
    axes[0].set_ylabel("share of points within the threshold")
    return _picture(figure)


def _draw_panel(
    axis: Axes, title: str, curves: Mapping[str, Tensor], thresholds_mm: Tensor
) -> None:
    """Draw the curves of one panel."""
    for index, (label, curve) in enumerate(curves.items()):
        colour, line = _LINES[index % len(_LINES)]
        points = thresholds_mm.cpu().numpy(), curve.detach().cpu().numpy()
        axis.plot(*points, label=label, color=colour, linestyle=line, linewidth=1.8)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("error threshold (mm)")
    axis.set_xlim(0, float(thresholds_mm[-1]))
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _picture(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    """Return a drawn figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(rgba[..., :3])
