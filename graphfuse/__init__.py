"""graphfuse: fuse independently trained PyTorch models of any architecture into one.

>>> import torch, graphfuse
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> graph = graphfuse.trace(model, (torch.zeros(1, 4),))
>>> graphfuse.verify(graph).ok
True
"""

from graphfuse.aligned import Alignment
from graphfuse.alignment import align
from graphfuse.config import FuseConfig
from graphfuse.errors import GraphFuseError
from graphfuse.folding import Folded, fold_gains
from graphfuse.fuse import FuseResult, fuse
from graphfuse.matching import DepthMatch, Translation, match_depth, translate
from graphfuse.refine import Descent, finetune
from graphfuse.symmetry import SymmetryGraph, trace
from graphfuse.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "DepthMatch",
    "Descent",
    "Folded",
    "FuseConfig",
    "FuseResult",
    "GraphFuseError",
    "SymmetryGraph",
    "Translation",
    "Verification",
    "__version__",
    "align",
    "finetune",
    "fold_gains",
    "fuse",
    "match_depth",
    "trace",
    "translate",
    "verify",
]
