"""Other people's grasp planners: what each takes, made of a `GraspScene`, and what each answers, as grasps of ours.

None of them needs to be installed: everything is plain arrays. `gpd`, `anygrasp` and `contact_graspnet` hold one
convention each, `foreign` what they share, `robot` what comes over ROS, `moveit` what an arm is told. See
docs/grasps.md and examples/.
"""

from .foreign import foreign_plan, grasp_at, point_masks, view_of
from .robot import scene_of

__all__ = ["foreign_plan", "grasp_at", "point_masks", "scene_of", "view_of"]
