"""Settings of an alignment and a fusion, checked when they are read."""

from graphfuse.config.base import nearest
from graphfuse.config.calibrate import CalibrateConfig
from graphfuse.config.costs import Activations, CostConfig, FilterConfig, LossFilter, Measure, Metric, Normalize, Window
from graphfuse.config.flow import FlowConfig
from graphfuse.config.fuse import Driver, FuseConfig, Method, Scheme
from graphfuse.config.refine import RefineConfig
from graphfuse.config.run import RunConfig
from graphfuse.config.transport import RoleConfig, Scale, Solver

__all__ = [
    "Activations",
    "CalibrateConfig",
    "CostConfig",
    "Driver",
    "FilterConfig",
    "FlowConfig",
    "FuseConfig",
    "LossFilter",
    "Measure",
    "Method",
    "Metric",
    "Normalize",
    "RefineConfig",
    "RoleConfig",
    "RunConfig",
    "Scale",
    "Scheme",
    "Solver",
    "Window",
    "nearest",
]
