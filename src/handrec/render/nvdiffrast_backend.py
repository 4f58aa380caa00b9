"""The optional nvdiffrast rasterizer: for CUDA, installed by the user, used only when named."""

import importlib
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handrec.errors import UserError
from handrec.render.base import Attribute, Rasterizer
from handrec.render.warp_backend import WarpRasterizer

INSTALL = (
    "pip install setuptools wheel ninja && "
    "pip install git+https://github.com/NVlabs/nvdiffrast.git --no-build-isolation"
)
#: Where the package works.
DEVICE = "cuda"


class NvdiffrastRasterizer(Rasterizer):
    """Coverage and interpolation by NVIDIA's nvdiffrast, visibility by our edge flux.

    The package is neither bundled nor required: its licence allows research and evaluation only.
    It is asked for when this class is constructed. Barycentric weights and the gradient of
    visibility are those of the Warp kernels, so that the pictures and gradients are the contract's,
    except that the package rounds vertices to a fraction of a pixel and has its own rule for pixel
    centres on an edge and for equal depths.

    Args:
        near: metres.
        chunk: images drawn at a time, see :class:`Rasterizer`.
        antialias: take the package's antialiasing for the visibility instead. It changes the image
            wherever a gradient is asked for: pixels at silhouettes are blends of both sides, the
            mask has values between 0 and 1. Its gradients are too small for hands of fewer than
            some 500 pixels, whose faces are about as small as a pixel.
    """

    def __init__(
        self, near: float = 0.01, chunk: int | None = None, antialias: bool = False
    ) -> None:
        super().__init__(near, chunk)
        self.antialias = antialias
        self.kernels = WarpRasterizer(near)
        _package()

    def cover(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        size: tuple[int, int],
    ) -> Int[Tensor, "b h w"]:
        """Return the face seen at each pixel centre, -1 for none."""
        return self._rasterize(screen, faces, size)[..., 3].int() - 1

    def interpolate(
        self,
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
        attributes: list[Attribute],
    ) -> list[Tensor]:
        """Return each attribute at each pixel, ``(B, H, W, C)``, zero off the mesh."""
        # Interpolating the identity gives the weights.
        corners = torch.arange(3, device=faces.device).expand(len(faces), 3)
        identity = Attribute(torch.eye(3, device=screen.device)[None], corners)
        (weights,) = self.kernels.interpolate(screen, faces, face_index, [identity])
        number = face_index[..., None] + 1.0
        raster = torch.cat([weights[..., :2], torch.zeros_like(number), number], dim=-1)
        maps = []
        for attribute in attributes:
            rows = faces if attribute.corners is None else attribute.corners
            values = attribute.values.float().contiguous()
            maps.append(_package().interpolate(values, raster, _indices(rows))[0])
        return maps

    def visibility(
        self,
        image: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "b 1 h w"],
        screen: Float[Tensor, "b v 3"],
        faces: Int[Tensor, "f 3"],
        face_index: Int[Tensor, "b h w"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 h w"]]:
        """Return image and mask, passing their gradients on to ``screen``; see ``antialias``."""
        if not self.antialias:
            return self.kernels.visibility(image, mask, screen, faces, face_index)
        _, height, width = face_index.shape
        raster = self._rasterize(screen.detach(), faces, (height, width))
        ahead = torch.cat([screen[..., :2], screen[..., 2:].clamp(min=self.near)], dim=-1)
        near, far = (bound(ahead[..., 2].detach()) for bound in (_nearest, _farthest))
        position = to_clip(ahead, near, far, (height, width)).contiguous()
        layers = torch.cat([image, mask], dim=1).permute(0, 2, 3, 1).contiguous()
        blended: Tensor = _package().antialias(layers, raster, position, _indices(faces))
        upright = blended.permute(0, 3, 1, 2)
        return upright[:, :-1], upright[:, -1:]

    @torch.no_grad()
    def _rasterize(self, screen: Tensor, faces: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the package's ``(u, v, z/w, face + 1)``, ``(B, H, W, 4)``.

        Every face gets vertices of its own: those not to be drawn, which the package would clip at
        ``near``, are put where nothing is seen.
        """
        if screen.device.type != DEVICE:
            raise UserError(
                f"NvdiffrastRasterizer draws on CUDA only, not on {screen.device}: "
                "train with --trainer.accelerator=gpu, or name WarpRasterizer"
            )
        corners = screen[:, faces]  # (B, F, 3, 3)
        depth = corners[..., 2]
        drawn = (depth >= self.near).all(2) & corners.isfinite().flatten(2).all(2)
        near = _nearest(depth.where(drawn[..., None], torch.inf).flatten(1))
        far = _farthest(depth.where(drawn[..., None], 0.0).flatten(1))
        corners = to_clip(corners.flatten(1, 2), near, far, size)
        unseen = corners.new_tensor([2.0, 2.0, 2.0, 1.0])
        corners = corners.where(drawn.repeat_interleave(3, 1)[..., None], unseen).contiguous()
        each = _indices(torch.arange(3 * len(faces), device=faces.device).view(-1, 3))
        raster: Tensor
        raster, _ = _package().rasterize(
            _context(screen.device), corners, each, list(size), grad_db=False
        )
        return raster


def to_clip(
    screen: Float[Tensor, "b n 3"],
    near: Float[Tensor, " b"],
    far: Float[Tensor, " b"],
    size: tuple[int, int],
) -> Float[Tensor, "b n 4"]:
    """Return OpenGL's clip coordinates, but with y down: the first row is then the top one.

    Args:
        screen: ``(x px, y px, z m)``, pixel centres at integer + 0.5.
        near: depth that becomes -1 after the division by w, metres.
        far: depth that becomes 1, metres.
        size: ``(height, width)``.
    """
    x, y, depth = screen.unbind(-1)
    near, far = near[:, None], far[:, None]
    height, width = size
    z = (depth * (far + near) - 2 * far * near) / (far - near)
    return torch.stack([(2 * x / width - 1) * depth, (2 * y / height - 1) * depth, z, depth], -1)


def _nearest(depth: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Return a depth before everything; infinite ones are nothing."""
    return 0.9 * depth.amin(1).nan_to_num(posinf=1.0)


def _farthest(depth: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Return a depth behind everything."""
    return 1.1 * depth.amax(1).where(depth.amax(1) > 0, 1.0)


def _indices(faces: Int[Tensor, "f 3"]) -> Int[Tensor, "f 3"]:
    return faces.int().contiguous()


def _package() -> Any:
    """Return nvdiffrast's interface to torch."""
    try:
        return importlib.import_module("nvdiffrast.torch")
    except ImportError as error:
        raise UserError(
            f"NvdiffrastRasterizer needs nvdiffrast ({error}); its licence allows research and "
            f"evaluation only. To install it: {INSTALL}"
        ) from error


@cache
def _context(device: torch.device) -> Any:
    """Return the package's context, one per device."""
    return _package().RasterizeCudaContext(device=device)


__all__ = ["NvdiffrastRasterizer"]
