"""semfield_ros: robots that know what they see."""

import os
import pkgutil

# Threads that spin while they wait starve the other threads of this process and of the robot: measured on two shared
# cores, training is ten times faster when they sleep. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"
