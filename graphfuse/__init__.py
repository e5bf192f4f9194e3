"""graphfuse: fuse independently trained PyTorch models of any architecture into one."""

from graphfuse.errors import GraphFuseError
from graphfuse.symmetry import SymmetryGraph, trace
from graphfuse.verify import Verification, verify

__version__ = "0.1.0"

__all__ = ["GraphFuseError", "SymmetryGraph", "Verification", "__version__", "trace", "verify"]
