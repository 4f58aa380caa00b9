"""Writes the network of a method as ONNX: crops and their cameras in, hands out."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handrec.errors import UserError
from handrec.hand.joints import JOINTS, KINEMATIC_JOINTS
from handrec.methods.base import HandMethod
from handrec.types import HandBatch

INPUTS = ("image", "intrinsics")
OUTPUTS = ("vertices", "joints", "pose", "betas", "translation", "scale", "keypoints_2d")

#: Grid sampling came with 16, what PyTorch's exporter is tested with starts at 18.
OPSETS = range(18, 24)
OPSET = 18

INSTALL = "pip install -e '.[onnx]' in handrec's folder"

CONVENTIONS = {
    "image": "float32 (batch, 3, size, size), RGB in [0, 1], not normalised: a square crop around"
    " one hand, about 1.3 times its longer side wide; a left hand mirrored, so that it looks like"
    " a right one",
    "intrinsics": "float32 (batch, 3, 3), K of the crop in pixels, centres at integer + 0.5",
    "vertices": "metres, camera frame (x right, y down, z forward), of a right hand; mirror x for"
    " a left one",
    "joints": "metres, camera frame, in the order of joint_names",
    "pose": "rotation matrices of joints pose_joint_names relative to the parent, the first to the"
    " camera",
    "betas": "shape coefficients",
    "translation": "metres, camera frame",
    "scale": "vertices are scale * (pose and betas decoded by the hand model) + translation",
    "keypoints_2d": "joints in the pixels of the crop",
}

LICENCE = {
    "OpenHand": "hand model: MIT",
    "Mano": "hand model: MANO, for non-commercial research only; its data is in this file: do not"
    " pass it on",
}


class Reconstructor(nn.Module):
    """A method as a function of image and intrinsics.

    Args:
        method: any that reconstructs hands.
    """

    def __init__(self, method: HandMethod) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, image: Float[Tensor, "b 3 h w"], intrinsics: Float[Tensor, "b 3 3"]
    ) -> tuple[Tensor, ...]:
        """Return what :data:`OUTPUTS` names."""
        absent: dict[str, Any] = dict.fromkeys(HandBatch._fields)
        batch = HandBatch(**{**absent, "image": image, "intrinsics": intrinsics})
        found = self.method.reconstruct(batch)
        return tuple(getattr(found._replace(scale=found.size), name) for name in OUTPUTS)


def export_onnx(
    method: HandMethod,
    path: Path,
    image_size: int,
    batch_size: int | None = None,
    opset: int = OPSET,
    about: dict[str, str] | None = None,
) -> None:
    """Write a method's network with all that is needed to use it in its metadata.

    Args:
        method: on the CPU, with the weights to write.
        path: of the ``.onnx`` file.
        image_size: width and height of the crops, pixels.
        batch_size: fixed number of hands; None lets every run choose.
        opset: of ONNX's operators.
        about: further metadata, such as the checkpoint.

    Raises:
        UserError: the extra is not installed, the opset not supported, or the network takes no
            crops of this size.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise UserError(f"writing ONNX needs {package}: {INSTALL}")
    if opset not in OPSETS:
        raise UserError(f"opset {opset}: choose from {OPSETS.start} to {OPSETS.stop - 1}")
    rows = batch_size or 3  # 1 would be taken for a constant
    dynamic = None
    if batch_size is None:
        batch = torch.export.Dim("batch", min=1, max=65535)
        dynamic = {"image": {0: batch}, "intrinsics": {0: batch}}
    network = Reconstructor(method.eval())
    _try(network, image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own workings
        program = torch.onnx.export(
            network,
            example(rows, image_size),
            dynamo=True,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=dynamic,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    shapes = [tensor.shape for tensor in program.model.graph.inputs]
    if batch_size is None and any(shape and isinstance(shape[0], int) for shape in shapes):
        # The exporter takes a size for a constant without a word where len() of a tensor is asked.
        raise UserError(f"{type(method).__name__} fixes its batch size: give one (--batch)")
    metadata = describe(method, image_size, batch_size) | (about or {})
    program.model.metadata_props.update(metadata)
    program.model.producer_name = "handrec"
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path)


def _try(network: Reconstructor, image_size: int) -> None:
    """Refuse a size of crops that a network does not take: the exporter says it in pages."""
    try:
        with torch.no_grad():
            network(*example(1, image_size))
    except (UserError, RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{type(network.method).__name__} takes no crops of {image_size} x {image_size} pixels"
            f" ({reason}): export it at the size it was trained at"
        ) from error


def example(rows: int, image_size: int) -> tuple[Tensor, Tensor]:
    """Return random crops and the intrinsics of a usual camera, always the same."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(rows, 3, image_size, image_size, generator=generator)
    focal, middle = 2.0 * image_size, image_size / 2
    intrinsics = torch.tensor([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]])
    return image, intrinsics.repeat(rows, 1, 1)


def describe(method: HandMethod, image_size: int, batch_size: int | None) -> dict[str, str]:
    """Return the metadata of a model; what is not text is JSON.

    Args:
        method: whose network it is.
        image_size: of the crops, pixels.
        batch_size: None is any.
    """
    hand = type(method.hand).__name__
    content = {
        "method": type(method).__name__,
        "hand_model": hand,
        "image_size": image_size,
        "batch_size": batch_size or "dynamic",
        "conventions": CONVENTIONS,
        "faces": method.hand.faces.tolist(),
        "joint_names": JOINTS,
        "pose_joint_names": KINEMATIC_JOINTS,
        "licence": f"weights: as the data they were trained on; {LICENCE.get(hand, hand)}",
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in content.items()
    }


def largest_differences(
    path: Path, method: HandMethod, image_size: int, batch_size: int
) -> dict[str, float]:
    """Return how far ONNX Runtime is from PyTorch on random crops, by output.

    Args:
        path: of the model.
        method: that it was written from.
        image_size: of its crops.
        batch_size: of the crops to try.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = example(batch_size, image_size)
    found = session.run(
        list(OUTPUTS), {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
    )
    with torch.no_grad():
        expected = Reconstructor(method.eval())(*inputs)
    return {
        name: float((torch.from_numpy(ours) - theirs).abs().max())
        for name, ours, theirs in zip(OUTPUTS, found, expected, strict=True)
    }
