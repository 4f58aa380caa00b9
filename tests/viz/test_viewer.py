import base64
import json
import re
import shutil
import subprocess
from importlib import resources

import cv2
import numpy as np
import pytest
import torch
import trimesh

from handrec.viz.viewer import ShownHand, ViewerPage

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
INTRINSICS = np.array([[300.0, 0, 80], [0, 290, 60], [0, 0, 1]])


def ball(x, radius=0.04):
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    vertices = torch.from_numpy(mesh.vertices.copy()).float() + torch.tensor([x, 0.01, 0.5])
    return vertices, torch.from_numpy(mesh.faces.copy())


def write(path, kind="photos", name="a.jpg", title="Hands"):
    vertices, faces = ball(-0.05)
    other = vertices * torch.tensor([-1.0, 1, 1])  # a left hand is mirrored, and its faces turn
    joints = vertices[:21]
    picture = np.full((120, 160, 3), (200, 30, 30), np.uint8)
    with ViewerPage(path, title, faces, kind, note="<b>") as page:
        hands = [ShownHand("right", 0, vertices, joints), ShownHand("left", 1, other, other[:21])]
        page.add(name, picture, INTRINSICS, hands, None if kind == "photos" else 0.0)
        page.add("b.jpg", picture, INTRINSICS, [], None if kind == "photos" else 0.04)
    return vertices, other, faces


def items(path):
    found = re.findall(r'<script type="application/json" class="item">(.*?)</script>',
                       path.read_text())  # fmt: skip
    return [json.loads(item) for item in found]


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    vertices, other, faces = write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|src=|<link|@import|fetch\(|import ", text)
    (data, empty) = items(tmp_path / "page.html")
    assert (data["name"], data["size"], empty["hands"]) == ("a.jpg", [120, 160], [])
    assert data["k"] == [300, 290, 80, 60]
    for hand, expected in zip(data["hands"], (vertices, other), strict=True):
        levels = np.frombuffer(base64.b64decode(hand["vertices"]), "<u2").reshape(-1, 3)
        points = np.array(hand["low"]) + levels * hand["step"]
        np.testing.assert_allclose(points, expected, atol=2e-6)
    encoded = base64.b64decode(data["image"].partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert abs(picture.astype(int) - (200, 30, 30)).max() < 12
    (page,) = re.findall(r'id="page">(.*?)</script>', text)
    stored = {side: np.frombuffer(base64.b64decode(values), "<u4").reshape(-1, 3)
              for side, values in json.loads(page)["faces"].items()}  # fmt: skip
    np.testing.assert_array_equal(stored["right"], faces)
    np.testing.assert_array_equal(stored["left"], faces.flip(-1))


def test_names_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    write(tmp_path / "page.html", name=evil, title=evil)
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in text
    assert items(tmp_path / "page.html")[0]["name"] == evil


def test_a_page_is_whole_after_a_fault(tmp_path):
    def interrupted():
        with ViewerPage(tmp_path / "page.html", "Hands", ball(0)[1]) as page:
            page.add("a", np.zeros((9, 9, 3), np.uint8), INTRINSICS, [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(items(tmp_path / "page.html")) == 1
    assert (tmp_path / "page.html").read_text().endswith("</html>\n")


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_script_parses():
    script = resources.files("handrec") / "assets" / "viewer" / "viewer.js"
    with resources.as_file(script) as path:
        done = subprocess.run(["node", "--check", str(path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def screenshot(page, out, fragment=""):
    options = [
        "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--hide-scrollbars", "--window-size=1200,800",
        "--virtual-time-budget=3000", "--proxy-server=127.0.0.1:9",
    ]  # fmt: skip
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={out}", f"file://{page}{fragment}"],
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    return cv2.imread(str(out))[..., ::-1].astype(int)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_the_hands_in_their_colours_side_by_side(tmp_path):
    write(tmp_path / "page.html")
    shot = screenshot(tmp_path / "page.html", tmp_path / "shaded.png")
    right = shot[:, 600:]  # the 3D view; the photo is on the left
    blue = (right[..., 2] - right[..., 0] > 40) & (right[..., 2] > 90)
    orange = (right[..., 0] - right[..., 2] > 40) & (right[..., 0] > 90)
    rows, columns = np.nonzero(blue[150:520])
    assert len(rows) > 4000
    assert np.nonzero(orange[150:520])[0].size > 4000
    # The right hand lies to the left in the camera frame, and both balls look round.
    assert np.median(columns) < np.median(np.nonzero(orange[150:520])[1]) - 80
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.15)
    # Light comes from above.
    bright = right[150:520].sum(-1) * blue[150:520]
    assert bright[: rows.min() + 60].max() > bright[rows.max() - 30 :].max() + 60


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_colours_hands_by_the_photo(tmp_path):
    write(tmp_path / "page.html", "video")
    shot = screenshot(tmp_path / "page.html", tmp_path / "photo.png", "#mode=photo")
    red = (abs(shot[:, 600:] - (200, 30, 30)) < 25).all(-1)
    assert red.sum() > 8000
