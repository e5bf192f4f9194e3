"""Refinement by gradient on unlabelled inputs: maps before averaging, weights after it; and short fine-tuning."""

from graphfuse.refine.loop import Descent
from graphfuse.refine.maps import refine_maps
from graphfuse.refine.weights import finetune, refine_weights

__all__ = ["Descent", "finetune", "refine_maps", "refine_weights"]
