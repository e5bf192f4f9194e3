"""graphfuse: fuse independently trained PyTorch models of any architecture into one.

>>> import torch, graphfuse
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> graph = graphfuse.trace(model, (torch.zeros(1, 4),))
>>> graphfuse.verify(graph).ok
True
"""

from graphfuse.aligned import Alignment
from graphfuse.aligning import align
from graphfuse.comparison import ModelComparison, compare
from graphfuse.config import FuseConfig, RunConfig
from graphfuse.errors import GraphFuseError
from graphfuse.evaluation import Evaluation, Metric, evaluate
from graphfuse.folding import Folded, fold_gains
from graphfuse.fuse import FuseResult, fuse
from graphfuse.landscape import Landscape, landscape
from graphfuse.matching import DepthMatch, Translation, match_depth, translate
from graphfuse.refine import Descent, finetune
from graphfuse.symmetry import SymmetryGraph, trace
from graphfuse.tasks import add_task_vector, task_vector
from graphfuse.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "DepthMatch",
    "Descent",
    "Evaluation",
    "Folded",
    "FuseConfig",
    "FuseResult",
    "GraphFuseError",
    "Landscape",
    "Metric",
    "ModelComparison",
    "RunConfig",
    "SymmetryGraph",
    "Translation",
    "Verification",
    "__version__",
    "add_task_vector",
    "align",
    "compare",
    "evaluate",
    "finetune",
    "fold_gains",
    "fuse",
    "landscape",
    "match_depth",
    "task_vector",
    "trace",
    "translate",
    "verify",
]
