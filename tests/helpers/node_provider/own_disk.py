"""Ray's provider of machines that are processes, with a folder of its own for each machine, as a disk would be.

Ray's own lets them share one. A machine that joins then unpacks the code of a running job where the other machines
run it, and their imports fail in between. Ray's head loads this file by its name, with this folder in PYTHONPATH; the
rest of the project must not be there, or the machines would have its code without being sent it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any
from unittest.mock import patch

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class OwnDisk(FakeMultiNodeProvider):
    """The entry `disks` of its configuration is the folder in which each machine gets one."""

    def _create_node_with_resources_and_labels(self, *args: Any) -> None:
        disk = tempfile.mkdtemp(dir=self.provider_config["disks"])
        with patch.object(parameter, "RayParams", partial(parameter.RayParams, temp_dir=disk)):
            super()._create_node_with_resources_and_labels(*args)
