"""Errors of projected joints against labelled 2D keypoints."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from handrec.metrics.functional import auc, pck_curve

#: Mean distance in pixels, if the crop were 224 wide, and in per cent of the longer side of the box
#: around the labelled keypoints; share of keypoints off by at most 5 % and 10 % of that side; area
#: under that curve from 0 to 20 %.
KEYPOINTS = ("kp_px", "kp_box", "kp_pck05", "kp_pck10", "kp_auc")

#: Crops are as large as this where errors are in pixels.
CROP = 224

#: Shares of the box.
THRESHOLDS = torch.linspace(0, 0.2, 101)


def keypoint_figures(
    found: Float[Tensor, "b 21 2"],
    target: Float[Tensor, "b 21 2"],
    known: Float[Tensor, "b 21"],
    size: int,
) -> Float[Tensor, "b 5"]:
    """Return the figures of :data:`KEYPOINTS` of each sample, NaN where it has no two keypoints.

    Args:
        found: keypoints, pixels.
        target: labels, pixels.
        known: 1 where there is a label.
        size: side of the crop, pixels.
    """
    labelled = known > 0
    pixels = (found - target).norm(dim=-1)
    low = target.masked_fill(~labelled[..., None], torch.inf).amin(1)
    high = target.masked_fill(~labelled[..., None], -torch.inf).amax(1)
    side = (high - low).amax(1, keepdim=True)
    shares = (pixels / side).masked_fill(~labelled, torch.inf)
    count = known.sum(1)
    # A curve's shares are of all 21: those without a label never count.
    curve = pck_curve(shares.double(), THRESHOLDS) * (21 / count)[:, None].double()
    columns = [
        (pixels * known).sum(1) / count * CROP / size,
        100 * (pixels / side * known).sum(1) / count,
        curve[:, 25],
        curve[:, 50],
        auc(curve, THRESHOLDS),
    ]
    figures = torch.stack([column.float() for column in columns], dim=1)
    return figures.masked_fill((count < 2)[:, None] | ~(side > 0), torch.nan)


def is_2d_only(results: Mapping[str, Tensor]) -> bool:
    """Return whether only 2D keypoints were there to compare with.

    Args:
        results: means of all metrics.
    """
    absent = all(results[name].isnan() for name in ("pa_mpjpe", "pa_mpvpe"))
    return bool(absent and results["kp_px"].isfinite())
