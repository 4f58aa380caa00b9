import json
import sys
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch

from handrec.errors import UserError
from handrec.hand.joints import JOINTS
from handrec.hand.openhand import OpenHand
from handrec.methods.cyclehand import CycleHand
from handrec.methods.handmim import HandMIM
from handrec.methods.onnx_export import OUTPUTS, example, export_onnx, largest_differences
from handrec.methods.s2hand import S2HAND
from handrec.models.backbones import TimmBackbone
from handrec.models.hourglass import Hourglass
from handrec.models.iterative import IterativeRegressor
from handrec.models.pymaf import PyMAF
from handrec.models.s2hand import S2HandRegressor
from handrec.models.s2hand_appearance import AppearanceHead
from handrec.render.warp_backend import WarpRasterizer

SIZE = 32


def backbone():
    options = {"depth": 1, "embed_dim": 48, "num_heads": 2, "patch_size": 8}
    return TimmBackbone("vit_tiny_patch16_224", SIZE, stem="conv", options=options)


def handmim(hand):
    head = partial(PyMAF, iterations=2, map_channels=16, grid=5, points=20, width=32,
                   dense_feedback=True)  # fmt: skip
    return HandMIM(backbone(), head, hand, WarpRasterizer())


def s2hand(hand):
    regressor = partial(S2HandRegressor, camera="weak", widths=(32, 32), cells=2, lift=True)
    return S2HAND(backbone(), regressor, hand, WarpRasterizer(), appearance=AppearanceHead,
                  keypoints=Hourglass(1, 16, 2, 1, upsample=False))  # fmt: skip


def cyclehand(hand):
    head = partial(IterativeRegressor, width=32)
    return CycleHand(backbone(), head, hand, WarpRasterizer(), texture_size=32)


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes():
    """Tracing passes symbols where the tests' type checks want integers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


METHODS = {"handmim": handmim, "s2hand": s2hand, "cyclehand": cyclehand}


@pytest.fixture(scope="module", params=METHODS)
def exported(request, tmp_path_factory):
    """A method with random weights, none of them zero, and its file."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    method = METHODS[request.param](OpenHand()).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("onnx") / "some.onnx"
    export_onnx(method, path, SIZE, about={"checkpoint": "best.ckpt"})
    return method, path


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5])
def test_onnx_runtime_says_what_pytorch_says_at_any_batch_size(exported, batch_size):
    differences = largest_differences(exported[1], exported[0], SIZE, batch_size)
    assert set(differences) == set(OUTPUTS)
    assert max(differences.values()) < 1e-3
    assert max(differences[name] for name in ("vertices", "joints", "translation")) < 1e-5


@pytest.mark.slow
def test_outputs_mean_what_the_file_says_they_do(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[1], providers=["CPUExecutionProvider"])
    image, intrinsics = (x.numpy() for x in example(2, SIZE))
    intrinsics[1] = [[90, 0, 10], [0, 80, 20], [0, 0, 1]]
    found = dict(zip(OUTPUTS, session.run(OUTPUTS, {"image": image, "intrinsics": intrinsics}),
                     strict=True))  # fmt: skip
    pixels = found["joints"] @ intrinsics.transpose(0, 2, 1)
    np.testing.assert_allclose(
        found["keypoints_2d"], pixels[..., :2] / pixels[..., 2:], rtol=1e-3, atol=0.02
    )
    eye = found["pose"] @ found["pose"].transpose(0, 1, 3, 2)
    np.testing.assert_allclose(eye, np.broadcast_to(np.eye(3), eye.shape), atol=1e-4)
    assert np.abs(found["vertices"][0] - found["vertices"][1]).max() > 1e-4
    pose, betas = (torch.from_numpy(found[name]) for name in ("pose", "betas"))
    decoded = exported[0].hand.decode(pose, betas, torch.zeros(2, 3)).vertices.numpy()
    placed = found["scale"][:, None, None] * decoded + found["translation"][:, None]
    np.testing.assert_allclose(found["vertices"], placed, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    faces = np.array(json.loads(about["faces"]))
    np.testing.assert_array_equal(faces, exported[0].hand.faces)
    assert tuple(json.loads(about["joint_names"])) == JOINTS
    assert (about["image_size"], about["batch_size"]) == ("32", "dynamic")
    assert about["checkpoint"] == "best.ckpt"
    assert set(json.loads(about["conventions"])) == {"image", "intrinsics", *OUTPUTS}
    assert "MIT" in about["licence"]


@pytest.mark.slow
def test_a_fixed_batch_is_fixed(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(cyclehand(OpenHand()), tmp_path / "a.onnx", SIZE, batch_size=1)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [x.shape for x in session.get_inputs()] == [[1, 3, SIZE, SIZE], [1, 3, 3]]


class FixesItsBatch(CycleHand):
    def reconstruct(self, batch):
        found = super().reconstruct(batch)
        return found._replace(betas=torch.zeros(len(batch.image), 10))


@pytest.mark.slow
def test_a_network_that_fixes_its_batch_is_not_written_as_one_that_does_not(tmp_path):
    pytest.importorskip("onnxscript")
    method = cyclehand(OpenHand())
    method.__class__ = FixesItsBatch
    with pytest.raises(UserError, match="FixesItsBatch fixes its batch size"):
        export_onnx(method, tmp_path / "a.onnx", SIZE)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("opset", [9, 17, 99])
def test_an_opset_that_is_not_supported_is_refused(tmp_path, opset):
    with pytest.raises(UserError, match=f"opset {opset}: choose from 18 to 23"):
        export_onnx(cyclehand(OpenHand()), tmp_path / "a.onnx", SIZE, opset=opset)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named_with_what_to_type(tmp_path, monkeypatch, package):
    known = sys.modules.get
    find = lambda name: None if name == package else known(name, name)  # noqa: E731
    monkeypatch.setattr("handrec.methods.onnx_export.find_spec", find)
    with pytest.raises(UserError, match=rf"needs {package}: pip install -e '\.\[onnx\]' in"):
        export_onnx(cyclehand(OpenHand()), tmp_path / "a.onnx", SIZE)


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_crops_that_a_network_does_not_take_are_one_line(tmp_path, make):
    pytest.importorskip("onnxscript")
    said = r"takes no crops of 7 x 7 pixels \(.*\): export it at the size it was trained at$"
    with pytest.raises(UserError, match=said) as caught:
        export_onnx(make(OpenHand()), tmp_path / "a.onnx", 7)
    assert "\n" not in str(caught.value)
