"""Ties the features of pictures to those of drawings of the same hands."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handrec.errors import fraction, one_of, positive
from handrec.losses.contrastive import domain_consistency, info_nce, turn_features
from handrec.losses.distillation import Centre
from handrec.losses.processes import gathered
from handrec.models.base import Backbone, Features
from handrec.models.prototypes import PrototypeHead

#: Width of the projector, and of what it makes: 42 points of space, so that they can be turned.
_HIDDEN, _PROJECTED = 512, 126


#: Which pairs are tied, see :class:`Contrast`.
Pairs = Literal["turned", "redrawn"]


@dataclass(frozen=True)
class Contrast:
    """How pictures and drawings are tied.

    Attributes:
        pairs: ``turned``: a picture and (b), whose features are turned back first. ``redrawn``: a
            picture and a drawing of (a) itself, for the costs of another drawing.
        temperature: of InfoNCE.
        prototypes: of the teacher-student form.
        momentum: of the teacher.
    """

    pairs: Pairs = "turned"
    temperature: float = 0.5
    prototypes: int = 1024
    momentum: float = 0.996

    def __post_init__(self) -> None:
        one_of(self, Pairs, pairs=self.pairs)
        positive(self, temperature=self.temperature, prototypes=self.prototypes)
        fraction(self, momentum=self.momentum)


DEFAULT_CONTRAST = Contrast()


class DomainTie(nn.Module):
    """The projector of the contrastive term, and teacher and prototypes of the distilled one.

    Args:
        backbone: of the student.
        contrast: see the class.
        distill: whether there is a teacher.
    """

    def __init__(self, backbone: Backbone, contrast: Contrast, distill: bool) -> None:
        super().__init__()
        channels = 2 * backbone.channels
        self.options = contrast
        self.projector = nn.Sequential(
            nn.Linear(channels, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _PROJECTED)
        )
        self.prototypes: PrototypeHead | None = None
        if distill:
            self.prototypes = PrototypeHead(channels, contrast.prototypes, _HIDDEN)
            self.centre = Centre(contrast.prototypes)
            self.teacher = deepcopy(backbone).requires_grad_(False)
            self.teacher_prototypes = deepcopy(self.prototypes).requires_grad_(False)

    def contrast(
        self,
        pictures: Float[Tensor, "n c"],
        drawings: Float[Tensor, "n c"],
        rotation: Float[Tensor, "n 3 3"] | None,
        weight: Float[Tensor, " n"],
    ) -> Float[Tensor, ""]:
        """Return InfoNCE of features; negatives are those of all processes.

        Args:
            pictures: their features.
            drawings: features of drawings of the same hands.
            rotation: by which these were turned; None if they were not.
            weight: how far each drawing is believed to be of its picture's hand.
        """
        first, second = self.projector(pictures), self.projector(drawings)
        if rotation is not None:
            second = turn_features(second, rotation.mT)
        pairs = gathered(first), gathered(second)
        return info_nce(*pairs, self.options.temperature, gathered(weight))

    def distill(
        self,
        features: Float[Tensor, "n c"],
        images: Float[Tensor, "n 3 h w"],
        weight: Float[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """Compare student and teacher across the two domains.

        Args:
            features: the student's, of pictures and then of the drawings of the same hands.
            images: what they were made of.
            weight: of each picture and its drawing.
        """
        assert self.prototypes is not None
        with torch.no_grad():
            seen = describe(self.teacher.encode(images))
            targets = self.teacher_prototypes.score(self.teacher_prototypes.embed(seen))
        logits = self.prototypes.score(self.prototypes.embed(features))
        student, teacher = (x.unflatten(0, (2, -1)) for x in (logits, targets))
        term = domain_consistency(student, teacher, self.centre.value, weight)
        self.centre.add(targets.mean(0))
        return term

    @torch.no_grad()
    def follow(self, backbone: Backbone, momentum: float | None = None) -> None:
        """Move the teacher towards the student: ``t <- m t + (1 - m) s``; statistics are copied.

        The centre moves by the batches since it last did.
        """
        if self.prototypes is None:
            return
        self.centre.step()
        momentum = self.options.momentum if momentum is None else momentum
        student = nn.ModuleList([backbone, self.prototypes])
        teacher = nn.ModuleList([self.teacher, self.teacher_prototypes])
        pairs = tuple(teacher.parameters()), tuple(student.parameters())
        torch._foreach_lerp_(*pairs, 1 - momentum)
        for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)

    def train(self, mode: bool = True) -> "DomainTie":
        """Train the student's part; the teacher stays as it is used, without dropout."""
        super().train(mode)
        if self.prototypes is not None:
            self.teacher.eval()
        return self


def describe(features: Features) -> Float[Tensor, "b c"]:
    """Return one vector per image: pooled features and the mean of the grid's."""
    return torch.cat([features.pooled, features.grid.mean((2, 3))], dim=1)
