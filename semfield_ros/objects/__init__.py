"""From a scored surface cloud to objects with boxes and grasp candidates."""

from .antipodal_planner import grasp_candidates
from .boxes import OrientedBox, principal_box, upright_box
from .grasping import with_grasps
from .grasps import Grasp, GraspPlan, GraspPlanner, GraspScene
from .objects import Object, confidence, find_objects

__all__ = [
    "Grasp",
    "GraspPlan",
    "GraspPlanner",
    "GraspScene",
    "Object",
    "OrientedBox",
    "confidence",
    "find_objects",
    "grasp_candidates",
    "principal_box",
    "upright_box",
    "with_grasps",
]
