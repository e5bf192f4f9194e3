"""Settings of an alignment and a fusion, checked when they are read."""

from graphfuse.config.base import nearest
from graphfuse.config.calibrate import CalibrateConfig
from graphfuse.config.fuse import FuseConfig, Method, Scheme
from graphfuse.config.refine import RefineConfig
from graphfuse.config.transport import Metric, RoleConfig, Solver

__all__ = [
    "CalibrateConfig",
    "FuseConfig",
    "Method",
    "Metric",
    "RefineConfig",
    "RoleConfig",
    "Scheme",
    "Solver",
    "nearest",
]
