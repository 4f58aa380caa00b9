"""A model of a 2D keypoint detector: what it gets wrong, and how sure it is of that.

Keypoints that a detector finds are not exact ones with Gaussian noise: hidden and blurred joints
are off further, a joint is taken for that of a neighbouring finger, a tip for the joint before
it, and some land anywhere. Confidences tell much of this but not all.

Published figures that the presets are held to (PCK@0.2: share of keypoints off by less than 0.2
of the hand's box; AUC: mean PCK from 0 to 30 px; as far as they were available to us):

- MMPose model zoo, ResNet-50 trained and tested on FreiHAND, 224 px: PCK@0.2 0.999, AUC 0.868,
  mean error 3.27 px (``configs/hand_2d_keypoint/topdown_heatmap/freihand2d``): the best case.
- MMPose model zoo, RTMPose-m over five data sets, 256 px: PCK@0.2 0.964, AUC 0.839, mean error
  5.06 px (``configs/hand_2d_keypoint/rtmpose/hand5``): ``typical``.
- MMPose model zoo, ResNet-50 on COCO-WholeBody hands in the wild: PCK@0.2 0.800
  (``.../coco_wholebody_hand``); F. Zhang et al., "MediaPipe Hands", arXiv 2006.10214: error of
  13.4 % of the palm's size. ``noisy`` lies between these two.
- M. Pu et al., "Robustness Evaluation in Hand Pose Estimation Models Using Metamorphic Testing",
  2023: occlusion and motion blur are what degrades MediaPipe, OpenPose and NSRM most.

How often fingers are swapped, how errors split between causes, and how confidences follow errors
we did not find published: those are our choices, stated where they are made.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handrec.data.noise import SeededNoise

#: Hands with a box of so many pixels, or fewer, are resolved worse: the error in pixels stays.
RESOLVED = 96.0

_OCCLUDED, _TIPS = 2.5, 1.3  # times the noise of a visible joint, of joints other than tips
_MISLED = 4.0  # times the outliers and swaps of visible joints, for hidden ones
_UNAWARE = 0.25  # share of mistakes that the detector is as sure of as of anything
_DOUBT = 12.0  # a perceived error of 1 / _DOUBT boxes takes the confidence to 1 / e


@dataclass(frozen=True)
class Detector:
    """A detector's faults; all zero is a perfect detector.

    Attributes:
        noise: standard deviation of a visible, sharp joint, share of the hand's box; images differ
            by a factor of 1.5 either way, and tails are heavy (Student, 4 degrees of freedom).
        outliers: probability that a visible joint is found at another joint or anywhere.
        swaps: probability that two neighbouring fingers change places, beyond their MCP joints; a
            tip goes to the joint before it as often, and the fingers' order turns round a quarter
            as often (a palm taken for a back).
        doubt: standard deviation of confidences that has nothing to do with errors.
    """

    noise: float = 0.0125
    outliers: float = 0.009
    swaps: float = 0.006
    doubt: float = 0.1

    @torch.no_grad()
    def detect(
        self,
        keypoints: Float[Tensor, "b 21 2"],
        visibility: Float[Tensor, "b 21"],
        blur: Float[Tensor, " b"],
        seed: Int[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b 21 2"], Float[Tensor, "b 21"]]:
        """Return found keypoints, pixels, and confidences in [0, 1].

        Args:
            keypoints: true ones, pixels.
            visibility: of each joint, 0 to 1.
            blur: of the picture, standard deviation in pixels; 0 is sharp.
            seed: of each image: the same seed and joints, the same answer, in any batch.
        """
        noise = SeededNoise(seed)
        low, high = keypoints.amin(1), keypoints.amax(1)
        box = (high - low).amax(1)[:, None].clamp(min=1.0)
        hidden = 1 - visibility
        # A picture blurred by so much shows no more than one that many times smaller.
        unclear = (RESOLVED / box).clamp(min=1) * (1 + (blur[:, None] / (0.02 * box)) ** 2).sqrt()
        misled = (unclear * (1 + (_MISLED - 1) * hidden)).clamp(max=8)
        named = keypoints.gather(1, self._mixed_up(misled, noise)[..., None].expand(-1, -1, 2))
        stray = noise.uniform(21) < self.outliers * misled
        found = torch.where(stray[..., None], _strays(keypoints, noise), named)
        sigma = self.noise * box * unclear * (1 + (_OCCLUDED - 1) * hidden) * _tips(keypoints)
        sigma = sigma * torch.exp(0.4 * noise.normal(1).clamp(-2, 2))
        found = found + sigma[..., None] * _student(noise)
        return found, self._confidence((found - keypoints).norm(dim=-1) / box, sigma / box, noise)

    def _mixed_up(self, misled: Float[Tensor, "b 21"], noise: SeededNoise) -> Int[Tensor, "b 21"]:
        """Return the joint that each joint is taken for."""
        count = len(misled)
        wrong = misled[:, 1:].view(count, 5, 4)
        order = torch.arange(1, 21, device=misled.device).view(1, 5, 4).repeat(count, 1, 1)
        drawn = noise.uniform(10)
        backwards = drawn[:, 9] < self.swaps / 4 * wrong.mean((1, 2))
        order = torch.where(backwards[:, None, None], order.flip(1), order)
        for first in range(4):
            beyond = wrong[:, first : first + 2, 1:].mean((1, 2))
            swapped = (drawn[:, first] < self.swaps * beyond)[:, None, None]
            pair = order[:, first : first + 2, 1:]
            order[:, first : first + 2, 1:] = torch.where(swapped, pair.flip(1), pair)
        short = drawn[:, 4:9] < self.swaps * wrong[:, :, 3]
        order[:, :, 3] = torch.where(short, order[:, :, 2], order[:, :, 3])
        return F.pad(order.flatten(1), (1, 0))  # the wrist, joint 0, is itself

    def _confidence(
        self, error: Float[Tensor, "b 21"], sigma: Float[Tensor, "b 21"], noise: SeededNoise
    ) -> Float[Tensor, "b 21"]:
        """Return confidences: they know how hard a joint is, and of most mistakes."""
        known = torch.where(noise.uniform(21) < _UNAWARE, sigma, torch.maximum(error, sigma))
        confidence = torch.exp(-_DOUBT * known) + self.doubt * noise.normal(21)
        return confidence.clamp(0, 1)


#: Detectors by name, as configurations may call them.
PRESETS = {
    "exact": Detector(noise=0.0, outliers=0.0, swaps=0.0, doubt=0.0),
    "typical": Detector(),
    "noisy": Detector(noise=0.025, outliers=0.03, swaps=0.022, doubt=0.15),
}


def estimate_blur(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the standard deviation of a picture's blur, pixels, from how steep its edges are.

    Blurred once more by ``s``, an edge of blur ``b`` is ``sqrt(1 + (s / b)^2)`` times less steep
    (S. Zhuo and T. Sim, Pattern Recognition 44, 2011). Pictures count as sharp up to one pixel:
    sampling alone blurs by about that.
    """
    grey = image.mean(1, keepdim=True)
    before, after = _steepness(grey), _steepness(_binomial(grey))
    ratio = (before / after.clamp(min=1e-6)).clamp(min=1.0)
    squared = 1.0 / (ratio**2 - 1).clamp(min=1e-3)  # the binomial filter's variance is 1
    return (squared - 1).clamp(min=0).sqrt()


def _binomial(grey: Tensor) -> Tensor:
    """Return the picture blurred by a binomial filter of variance 1."""
    weights = grey.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(grey, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, 5)), weights.view(1, 1, 5, 1))


def _steepness(grey: Tensor) -> Float[Tensor, " b"]:
    """Return how steep the steepest hundredth of a picture is, per pixel."""
    across, down = grey[..., 1:, 1:] - grey[..., 1:, :-1], grey[..., 1:, 1:] - grey[..., :-1, 1:]
    steep = (across**2 + down**2).sqrt().flatten(1)
    return steep.topk(max(1, steep.shape[1] // 100), dim=1).values.mean(1)


def _tips(keypoints: Tensor) -> Float[Tensor, " 21"]:
    """Return how much noisier each joint is for being a tip."""
    factor = torch.ones(21)
    factor[4::4] = _TIPS
    return factor.to(keypoints)


def _strays(keypoints: Float[Tensor, "b 21 2"], noise: SeededNoise) -> Float[Tensor, "b 21 2"]:
    """Return places of outliers: half at other joints, half anywhere about the hand."""
    low, high = keypoints.amin(1, keepdim=True), keypoints.amax(1, keepdim=True)
    anywhere = low + (1.4 * noise.uniform(21, 2) - 0.2) * (high - low)
    other = (21 * noise.uniform(21)).long().clamp(max=20)
    at_joint = keypoints.gather(1, other[..., None].expand(-1, -1, 2))
    return torch.where(noise.uniform(21, 1) < 0.5, at_joint, anywhere)


def _student(noise: SeededNoise) -> Float[Tensor, "b 21 2"]:
    """Return Student's t with 4 degrees of freedom, of variance 1."""
    squares = -2 * (noise.uniform(21, 1) * noise.uniform(21, 1)).log()  # chi squared of 4
    return noise.normal(21, 2) / (squares / 2).sqrt()
