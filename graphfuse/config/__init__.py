"""Settings of an alignment and a fusion, checked when they are read."""

from graphfuse.config.base import nearest
from graphfuse.config.calibrate import CalibrateConfig
from graphfuse.config.flow import FlowConfig
from graphfuse.config.fuse import Driver, FuseConfig, Method
from graphfuse.config.refine import RefineConfig
from graphfuse.config.transport import Metric, RoleConfig, Solver

__all__ = [
    "CalibrateConfig", "Driver", "FlowConfig", "FuseConfig", "Method", "Metric", "RefineConfig", "RoleConfig", "Solver",
    "nearest",
]  # fmt: skip
