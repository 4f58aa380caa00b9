"""What a shader gets to colour."""

from collections.abc import Callable, Mapping

from jaxtyping import Float, Int
from torch import Tensor


class Surface(dict[str, Tensor]):
    """What a shader gets: interpolated attributes by name, each ``(..., C)``.

    The leading axes are a batch of pixels. Whether they are ``(B, H, W)`` with zeros off the mesh,
    or a list of only those pixels that see a face, is the rasterizer's business, and so is how much
    of the batch they are: write shaders that work on the last axis, and let :meth:`of_image` bring
    in what is given per image.

    Args:
        attributes: by name.
        image_index: the image of each pixel, in a shape that broadcasts against the leading axes;
            None for the whole images of the whole batch.
    """

    def __init__(
        self, attributes: Mapping[str, Tensor], image_index: Int[Tensor, "..."] | None = None
    ) -> None:
        super().__init__(attributes)
        self.image_index = image_index

    def of_image(self, values: Float[Tensor, "b ..."]) -> Float[Tensor, "..."]:
        """Return what is given per image in a shape that broadcasts against the attributes."""
        if self.image_index is None:
            return values[:, None, None]
        if len(values) == 1:
            return values[0]
        picked = values.index_select(0, self.image_index.flatten())
        return picked.view(*self.image_index.shape, *values.shape[1:])


#: From a surface to its colours ``(..., C')``, over the same leading axes. Any differentiable
#: function of the attributes; it may hold lights and textures.
Shader = Callable[[Surface], Tensor]


__all__ = ["Shader", "Surface"]
