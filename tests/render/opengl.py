"""OpenGL draws the same scenes through EGL, without a window: a rasterizer that others wrote.

Where a GPU's driver is absent, Mesa's llvmpipe draws on the CPU.
"""

from typing import NamedTuple

import numpy as np

_VERTEX = """
#version 330
in vec4 position;
in vec3 normal;
in vec3 colour;
out vec3 at_normal;
out vec3 at_colour;
void main() {
    gl_Position = position;
    at_normal = normal;
    at_colour = colour;
}
"""

_FACE = """
#version 330
out float face;
void main() { face = float(gl_PrimitiveID); }
"""

_LAMBERT = """
#version 330
uniform vec3 ambient, directional, direction;
in vec3 at_normal;
in vec3 at_colour;
out vec3 seen;
void main() {
    float cosine = max(dot(normalize(at_normal), direction), 0.0);
    seen = clamp(at_colour * (ambient + directional * cosine), 0.0, 1.0);
}
"""


class Lit(NamedTuple):
    """What a lit picture takes: normals and colours ``(V, 3)``, three vectors of light."""

    normals: np.ndarray
    colours: np.ndarray
    ambient: np.ndarray
    directional: np.ndarray
    direction: np.ndarray


def create_context():
    """Return a context without a window; raises, whatever it is, where there is no EGL."""
    import moderngl
    import torch._dynamo  # noqa: F401  # its Triton, loaded after Mesa's LLVM, is a crash

    return moderngl.create_context(standalone=True, backend="egl")


class OpenGL:
    """Draws meshes of one topology at one size."""

    def __init__(self, context, faces, vertex_count, size):
        self.size, self.triangles = size, context.TRIANGLES
        context.enable(context.DEPTH_TEST)  # nearer wins, at equal depth the first; both sides
        indices = context.buffer(faces.astype("i4").tobytes())
        self.buffers = {
            name: context.buffer(reserve=vertex_count * width * 4)
            for name, width in (("position", 4), ("normal", 3), ("colour", 3))
        }
        self.targets, self.meshes, self.programs = {}, {}, {}
        for name, shader, channels in (("face", _FACE, 1), ("lit", _LAMBERT, 4)):
            program = context.program(vertex_shader=_VERTEX, fragment_shader=shader)
            inputs = [
                (self.buffers[key], f"{width}f", key)
                for key, width in (("position", 4), ("normal", 3), ("colour", 3))
                if key in program
            ]
            self.programs[name] = program
            self.meshes[name] = context.vertex_array(program, inputs, indices)
            picture = context.texture(size[::-1], channels, dtype="f4")
            self.targets[name] = context.framebuffer(
                [picture], context.depth_renderbuffer(size[::-1])
            )

    def face_index(self, screen):
        """Return the face seen at each pixel ``(H, W)``, -1 for none; screen is ``(V, 3)``."""
        self._move(screen)
        return self._draw("face")[..., 0].astype(int)

    def lit(self, screen, lit):
        """Return RGB ``(H, W, 3)``."""
        self._move(screen)
        self.buffers["normal"].write(lit.normals.astype("f4").tobytes())
        self.buffers["colour"].write(lit.colours.astype("f4").tobytes())
        for name in ("ambient", "directional", "direction"):
            self.programs["lit"][name].value = tuple(getattr(lit, name).tolist())
        return self._draw("lit")[..., :3]

    def _move(self, screen):
        self.buffers["position"].write(clip(screen, self.size).astype("f4").tobytes())

    def _draw(self, name):
        target = self.targets[name]
        target.use()
        target.clear(*([-1.0] if name == "face" else [0.0] * 4))
        self.meshes[name].render(self.triangles)
        channels = 1 if name == "face" else 4
        pixels = np.frombuffer(target.read(components=channels, dtype="f4"), "f4")
        return pixels.reshape(*self.size, channels)


def clip(screen, size):
    """Return clip coordinates of ``(x px, y px, z m)``: y down, so that row 0 read is the top."""
    x, y, z = screen.astype("f8").T
    height, width = size
    near, far = 0.9 * z.min(), 1.1 * z.max()
    depth = (z * (far + near) - 2 * far * near) / (far - near)
    return np.stack([(2 * x / width - 1) * z, (2 * y / height - 1) * z, depth, z], axis=1)


def unlike(screen, faces, ours, theirs):
    """Return how far pixels that differ are from where both may be right.

    Args:
        screen: ``(V, 3)`` of ``(x px, y px, z m)``.
        faces: ``(F, 3)``.
        ours: face seen at each pixel, -1 for none.
        theirs: the same.

    Returns:
        of each differing pixel: the distance (px) of its centre to the outline of either face, and
        the relative difference of their depths there, infinite if only one is seen.
    """
    y, x = np.nonzero(ours != theirs)
    centre = np.stack([x, y], axis=1) + 0.5
    distances, depths = [], []
    for ids in (ours[y, x], theirs[y, x]):
        corners = screen.astype("f8")[faces[ids]]
        to_corner = corners[..., :2] - centre[:, None]
        following = np.roll(to_corner, -1, axis=1)
        along = following - to_corner
        length = (along**2).sum(-1)
        share = np.clip(-(to_corner * along).sum(-1) / length, 0, 1)
        distance = np.linalg.norm(to_corner + share[..., None] * along, axis=-1).min(1)
        cross = to_corner[..., 0] * following[..., 1] - to_corner[..., 1] * following[..., 0]
        weights = np.roll(cross, -1, axis=1) / cross.sum(1, keepdims=True)  # facing each corner
        depth = 1 / (weights / corners[..., 2]).sum(1)
        distances.append(np.where(ids < 0, np.inf, distance))
        depths.append(np.where(ids < 0, np.inf, depth))
    with np.errstate(invalid="ignore"):
        apart = np.abs(depths[0] - depths[1]) / np.minimum(*depths)
    return np.minimum(*distances), np.where(np.isfinite(apart), apart, np.inf)
