import subprocess
import sys

# In a process of its own: here types are checked, and users' programs check none.
PROGRAM = """
from handrec.errors import UserError
from handrec.hand.openhand import OpenHand
from handrec.methods.cycle_flow import Flow
from handrec.methods.cyclehand import CycleHand
from handrec.methods.handmim_pretrain import HandMIMPretrain, Teacher
from handrec.methods.s2hand import S2HAND
from handrec.models.backbones import TimmBackbone
from handrec.models.cycle_rotation import Turns
from handrec.models.domains import Contrast
from handrec.models.masking import Masking
from handrec.models.s2hand import S2HandRegressor
from handrec.models.s2hand_appearance import AppearanceHead

hand = OpenHand()
for build in (
    lambda: Flow(hands="know"),
    lambda: Turns("so3"),
    lambda: Contrast("both"),
    lambda: Masking(shape="blocks"),
    lambda: Teacher(targets="center"),
    lambda: CycleHand(None, None, hand, None, phase="two"),
    lambda: HandMIMPretrain(None, None, alignment="none"),
    lambda: S2HAND(None, None, hand, None, limits="mano"),
    lambda: TimmBackbone(stem="convs"),
    lambda: S2HandRegressor(None, hand, pose="6d"),
    lambda: S2HandRegressor(None, hand, rotation="6d"),
    lambda: S2HandRegressor(None, hand, camera="orthographic"),
    lambda: AppearanceHead(None, hand, texture="vertices"),
    lambda: AppearanceHead(None, hand, light="sun"),
):
    try:
        build()
    except UserError as error:
        print(error)
"""


def test_python_users_hear_which_choices_there_are():
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said == [
        "Flow: hands is one of known, reconstructed, sampled, not know",
        "Turns: sampling is one of so3_uniform, euler_box, curriculum, not so3",
        "Contrast: pairs is one of turned, redrawn, not both",
        "Masking: shape is one of block, random, not blocks",
        "Teacher: targets is one of centre, sinkhorn, not center",
        "CycleHand: phase is one of base, cycle, not two",
        "HandMIMPretrain: alignment is one of proto, invariant, regress, not none",
        "S2HAND: limits is one of anatomical, mano_axis_angle, not mano",
        "TimmBackbone: stem is one of patch, conv, not convs",
        "S2HandRegressor: pose is one of components, sixd, not 6d",
        "S2HandRegressor: rotation is one of axis_angle, sixd, not 6d",
        "S2HandRegressor: camera is one of perspective, weak, not orthographic",
        "AppearanceHead: texture is one of faces, atlas, not vertices",
        "AppearanceHead: light is one of directional, harmonics, not sun",
    ]
