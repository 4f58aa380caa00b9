"""S2HAND's losses on texture, light and surface: the rendered hand against the photo.

As published but for the silhouette: means run over the pixels that show the rendered hand, not
over the whole picture (docs/methods/s2hand.md). ``k_b`` is a sample's confidence, see
:func:`texture_confidence`; sums over a batch are weighted with ``k_b^2 / sum_b k_b^2``.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from handrec.losses.hand import masked_mean
from handrec.losses.precision import full_precision
from handrec.losses.s2hand import length

_EPS = 1e-6
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def texture_confidence(confidence: Float[Tensor, "b 21"], gate: float = 0.1) -> Float[Tensor, " b"]:
    """Return ``k_b = mean_j c_bj * [min_j c_bj >= gate]``.

    Args:
        confidence: ``c``.
        gate: 0.1 as published for FreiHAND, 0 (no gate) for HO-3D.
    """
    return confidence.mean(1) * (confidence.amin(1) >= gate)


@full_precision
def pixel_loss(
    rendered: Float[Tensor, "b 3 h w"],
    image: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    k: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return ``sum_b k_b^2 mean_{M_b} |I_re - I| / sum_b k_b^2`` (``texture``).

    Args:
        rendered: ``I_re``.
        image: ``I``, the photo.
        mask: ``M``, 1 where the rendered hand is seen; no gradient.
        k: see :func:`texture_confidence`.
    """
    return masked_mean(_mean_over(mask, (rendered - image).abs()), k.square())


@full_precision
def ssim_loss(
    rendered: Float[Tensor, "b 3 h w"],
    image: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    k: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return ``sum_b k_b^2 mean_{M_b} (1 - SSIM(I_re, I)) / sum_b k_b^2`` (``ssim_tex``).

    Arguments as of :func:`pixel_loss`; off the hand, ``rendered`` should show the photo.
    """
    return masked_mean(_mean_over(mask, 1 - ssim_map(rendered, image)), k.square())


def ssim_map(
    first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Return the structural similarity about each pixel (Z. Wang et al., TIP 13(4), 2004).

    ``(2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))``, ``m`` means
    and ``s`` covariances under Gaussian windows of 11 x 11, standard deviation 1.5, zeros beyond
    the border; C1 = 0.01^2, C2 = 0.03^2, for images with values in [0, 1]. At most 1.
    """
    # Channels last: CPUs' separate convolutions of channels are several times faster.
    first, second = (x.contiguous(memory_format=torch.channels_last) for x in (first, second))
    mean_b, square_b = _blur(torch.cat([second, second * second], dim=1)).chunk(2, dim=1)
    moments = _blur(torch.cat([first, first * first, first * second], dim=1))
    mean_a, square_a, product = moments.chunk(3, dim=1)
    means, squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    similar = (2 * means + _SSIM_C1) * (2 * (product - means) + _SSIM_C2)
    ssim: Tensor = similar / ((squares + _SSIM_C1) * (square_a + square_b - squares + _SSIM_C2))
    return ssim


def _blur(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the means under the windows, row by row and then column by column."""
    channels = images.shape[1]
    offsets = torch.arange(-5, 6, device=images.device, dtype=images.dtype)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, 11)
    across = F.conv2d(images, window, padding=(0, 5), groups=channels)
    return F.conv2d(across, window.mT, padding=(5, 0), groups=channels)


@full_precision
def mean_colour_loss(
    rendered: Float[Tensor, "b 3 h w"],
    image: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    k: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return ``sum_b k_b^2 |mean_{M_b} I_re - mean_{M_b} I| / sum_b k_b^2`` (``mrgb``).

    The means run over pixels and channels: it compares the brightness. Arguments as of
    :func:`pixel_loss`.
    """
    return masked_mean(_mean_over(mask, rendered - image).abs(), k.square())


def _mean_over(mask: Float[Tensor, "b 1 h w"], values: Float[Tensor, "b c h w"]) -> Tensor:
    """Return each sample's mean over the mask and the channels, 0 where the mask is empty."""
    mask = mask.detach()
    area = mask.sum((1, 2, 3)) * values.shape[1]
    return (values * mask).sum((1, 2, 3)) / area.clamp(min=1.0)


@full_precision
def texture_regularity_loss(
    offsets: Float[Tensor, "b n 3"], k: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return ``sum_b k_b^2 mean_nc |t - mu| [|t - mu| > 2 sigma] / sum_b k_b^2`` (``mtex``).

    ``mu_bc`` and ``sigma_bc`` are the sample's own mean and standard deviation of each channel.

    Args:
        offsets: ``t_bnc``, colours of faces or texels before the squashing function.
        k: see :func:`texture_confidence`.
    """
    distance = (offsets - offsets.mean(1, keepdim=True)).abs()
    sigma = offsets.detach().std(1, keepdim=True, correction=0)
    return masked_mean(distance * (distance > 2 * sigma), k.square())


class Laplacian(nn.Module):
    """How far vertices lie from the weighted means of their neighbours (``triangle``).

    The cotangent weights are those of the rest mesh, fixed, none below 0, and sum to 1 about each
    vertex: ``L_i(V) = sum_j w_ij (v_j - v_i)`` is a length.

    Args:
        vertices: of the rest mesh, metres.
        faces: of the mesh.

    Attributes (buffers):
        ends: ``(2, E)`` vertex ``i`` and its neighbour ``j``, each edge both ways.
        weights: ``(E,)``.
    """

    ends: Int[Tensor, "2 e"]
    weights: Float[Tensor, " e"]

    def __init__(self, vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> None:
        super().__init__()
        ends, weights = cotangent_weights(vertices.detach().double().cpu(), faces.cpu())
        self.register_buffer("ends", ends.to(vertices.device), persistent=False)
        self.register_buffer("weights", weights.to(vertices), persistent=False)

    def loss(
        self, vertices: Float[Tensor, "b v 3"], weight: Float[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Return ``mean_bi |L_i(V_b)|``, metres."""
        vertex, neighbour = self.ends
        pulls = self.weights[:, None].to(vertices) * (vertices[:, neighbour] - vertices[:, vertex])
        summed = torch.zeros_like(vertices).index_add(1, vertex, pulls)
        return masked_mean(length(summed), weight)


def cotangent_weights(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]
) -> tuple[Int[Tensor, "2 e"], Float[Tensor, " e"]]:
    """Return directed edges and their weights ``cot(alpha) + cot(beta)``, normalised per vertex.

    Weights below 0 (of obtuse angles) count as 0; a vertex with none above 0 has equal weights.
    """
    count = len(vertices)
    ends, cotangents = [], []
    for corner in range(3):
        apex, first, second = (faces[:, (corner + i) % 3] for i in range(3))
        u, v = vertices[first] - vertices[apex], vertices[second] - vertices[apex]
        sine = torch.linalg.cross(u, v).norm(dim=-1).clamp(min=1e-20)
        cotangent = (u * v).sum(-1) / sine
        ends += [torch.stack([first, second]), torch.stack([second, first])]
        cotangents += [cotangent, cotangent]
    keys, index = torch.unique(
        torch.cat(ends, 1)[0] * count + torch.cat(ends, 1)[1], return_inverse=True
    )
    weights = torch.zeros(len(keys), dtype=vertices.dtype)
    weights = weights.index_add(0, index, torch.cat(cotangents)).clamp(min=0) + 1e-9
    vertex = keys // count
    total = torch.zeros(count, dtype=vertices.dtype).index_add(0, vertex, weights)
    return torch.stack([vertex, keys % count]), weights / total[vertex]
