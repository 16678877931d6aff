"""The datasets of the repository, as `sources.recordings` has them."""

from __future__ import annotations

from framework.data.sources.argoverse import Argoverse
from framework.data.sources.base import RecordedDataset
from framework.data.sources.forecasting import Forecasting
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.raw import KittiRaw
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.lerobot.dataset import LeRobot
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.physical_ai.dataset import PhysicalAI
from framework.data.sources.py123d.dataset import Py123D

EVERY: dict[str, RecordedDataset] = {
    "argoverse": Argoverse(),
    "forecasting": Forecasting(),
    "nuscenes": NuScenes(),
    "kitti": Kitti(),
    "kitti_raw": KittiRaw(),
    "kitti_tracking": KittiTracking(),
    "py123d": Py123D(),
    "physical_ai": PhysicalAI(),
    "lerobot": LeRobot(),
}
