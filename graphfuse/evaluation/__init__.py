"""How good models are on labelled data: parents, their ensemble, averages, what was fused, and the line between two."""

from graphfuse.evaluation.evaluating import Curve, Evaluation, evaluate
from graphfuse.evaluation.metrics import METRICS, Metric

__all__ = ["METRICS", "Curve", "Evaluation", "Metric", "evaluate"]
