"""S2HAND's texture and light: from low-level features, and how they are drawn."""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from handrec.errors import UserError, not_negative, one_of
from handrec.geometry.mesh import face_normals
from handrec.hand.base import HandModel
from handrec.models.base import Backbone, Features
from handrec.models.compiling import Compilable
from handrec.render.base import Attribute, Rasterizer
from handrec.render.lights import AnyLight, Harmonics, Light
from handrec.render.shading import Shading
from handrec.render.textures import build_pyramid
from handrec.types import Camera, Rendering

#: The published mean colour, after its tanh.
MEAN_COLOUR = tuple(math.tanh(level / 256) for level in (200, 150, 150))

#: Side of the maps that the published convolutions are for.
_MAP_SIZE = 56

#: Numbers of each light model.
_LIGHTS = {"directional": 9, "harmonics": 27}


class Appearance(NamedTuple):
    """What the hands of a batch look like.

    Attributes:
        texture: RGB in [0, 1] without light: ``(B, F, 3)`` of faces or ``(B, 3, T, T)`` the atlas.
        offsets: of colours or texels from the mean colour, before the squashing function.
        light: of the hand.
    """

    texture: Tensor
    offsets: Float[Tensor, "b n 3"]
    light: AnyLight


#: What is read from images, see :class:`AppearanceHead`.
TextureForm = Literal["faces", "atlas"]
LightForm = Literal["directional", "harmonics"]


class AppearanceHead(Compilable):
    """Three convolutions on the finest map, then a head for the texture and one for the light.

    Args:
        backbone: whose finest map it reads; its grid if there is none finer.
        hand: whose faces or atlas are coloured.
        texture: a colour per face, as published, or an ``atlas``, ours.
        light: ``directional`` (ambient and one direction, as published) or ``harmonics`` (nine
            spherical harmonics per channel, ours).
        atlas_size: texels along the atlas' sides.
        cells: read the map averaged down to so many cells along each side, without convolutions;
            0, as published, with them. Ours, for small crops.
    """

    def __init__(
        self,
        backbone: Backbone,
        hand: HandModel,
        texture: TextureForm = "faces",
        light: LightForm = "directional",
        atlas_size: int = 32,
        cells: int = 0,
    ) -> None:
        super().__init__()
        one_of(self, TextureForm, texture=texture)
        one_of(self, LightForm, light=light)
        if atlas_size < 1:
            raise UserError(f"atlas_size must be at least 1, not {atlas_size}")
        not_negative(self, cells=cells)
        finest = (backbone.channels, *backbone.fine_channels)[-1]
        self.harmonics = light == "harmonics"
        self.atlas_size = atlas_size if texture == "atlas" else None
        colours = len(hand.faces) if self.atlas_size is None else atlas_size**2
        self.read = _cells(finest, cells) if cells else _convolutions(finest)
        self.texture = _mlp(256, 3 * colours)
        self.light = _mlp(256, _LIGHTS[light])
        mean = torch.tensor(MEAN_COLOUR).logit()
        self.register_buffer("mean_colour", mean, persistent=False)
        self.mean_colour: Tensor

    def networks(self) -> Iterable[nn.Module]:
        """Return what reads the maps."""
        return (self.read,)

    def look(self, features: Features) -> Appearance:
        """Return texture and light, in float32."""
        finest = features.fine[-1] if features.fine else features.grid
        seen = self.read(finest)
        offsets = self.texture(seen).float().unflatten(1, (-1, 3))
        texture = (self.mean_colour + offsets).sigmoid()
        if self.atlas_size is not None:
            texture = texture.mT.unflatten(2, (self.atlas_size, self.atlas_size))
        return Appearance(texture, offsets, self._light(self.light(seen).float()))

    def _light(self, raw: Tensor) -> AnyLight:
        """Return a light that starts as half ambient, half from the camera's side."""
        if self.harmonics:
            start = raw.new_zeros(9, 3)
            start[0] = math.sqrt(4 * math.pi)
            return Harmonics(raw.view(-1, 9, 3) + start)
        # Gains are positive; 1 / 2 at the start.
        gains = F.softplus(raw[:, :6] + math.log(math.expm1(0.5)))
        direction = raw[:, 6:] + raw.new_tensor([0.0, 0.0, -1.0])
        return Light(gains[:, :3], gains[:, 3:], direction)


#: Builds the texture and light head for a backbone and a hand model.
AppearanceFactory = Callable[[Backbone, HandModel], AppearanceHead]


def draw_hand(
    rasterizer: Rasterizer,
    hand: HandModel,
    vertices: Float[Tensor, "b v 3"],
    texture: Tensor,
    light: AnyLight,
    camera: Camera,
    background: Float[Tensor, "b 3 h w"] | None = None,
    *,
    edges: bool = True,
) -> Rendering:
    """Return hands with a normal per face, as published: ``albedo_f * light(n_f)``.

    Args:
        rasterizer: any backend.
        hand: the topology.
        vertices: metres, camera frame.
        texture: see :class:`Appearance`.
        light: per image.
        camera: per image.
        background: black if None.
        edges: whether outlines pass a gradient to the vertices; without, only shading does.
    """
    vertices, faces = vertices.float(), hand.faces
    each_face = torch.arange(len(faces), device=faces.device)[:, None].expand(-1, 3)
    outward = face_normals(vertices, faces)
    normal = Attribute(F.normalize(outward, dim=-1, eps=1e-20), each_face)
    inside = (outward * vertices[:, faces[:, 0]]).sum(-1, keepdim=True) > 0
    side = Attribute(torch.where(inside, -1.0, 1.0), each_face)
    attributes, pyramid = {"normal": normal, "side": side}, None
    if texture.ndim == 3:
        attributes["colour"] = Attribute(texture, each_face)
    else:
        pyramid = build_pyramid(texture.float(), mipmaps=False)
        attributes["uv"] = Attribute(hand.uv[None], hand.uv_faces)
    return rasterizer.render(
        vertices if edges else vertices.detach(),
        faces,
        attributes,
        camera,
        Shading(light, texture=pyramid, sampler=rasterizer.look_up, reflector=rasterizer.reflect),
        background=background,
    )


def _convolutions(channels: int) -> nn.Sequential:
    """Return the published layers, on 56 x 56 cells: 256 numbers."""
    return nn.Sequential(
        nn.Upsample((_MAP_SIZE, _MAP_SIZE), mode="bilinear", align_corners=False),
        nn.Conv2d(channels, 48, 10, stride=4, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(48, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def _cells(channels: int, cells: int) -> nn.Sequential:
    """Return one layer on a map's cells: 256 numbers."""
    pool = nn.AdaptiveAvgPool2d(cells)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels * cells**2, 256), nn.ReLU())


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Return two layers that start near zero: weights N(0, 1e-3)."""
    layers = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)
    return layers
