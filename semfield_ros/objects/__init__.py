"""From a scored surface cloud to objects with boxes and grasp candidates."""

from .boxes import OrientedBox, principal_box, upright_box
from .grasps import Grasp, grasp_candidates
from .objects import Object, confidence, find_objects

__all__ = [
    "Grasp",
    "Object",
    "OrientedBox",
    "confidence",
    "find_objects",
    "grasp_candidates",
    "principal_box",
    "upright_box",
]
