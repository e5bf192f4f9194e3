"""Refinement by gradient on unlabelled inputs: maps before averaging, weights after it; and short fine-tuning."""

from graphfuse.refine.loop import Descent
from graphfuse.refine.maps import refine_maps
from graphfuse.refine.objective import Teacher, held_out, run_model
from graphfuse.refine.weights import finetune, refine_weights

__all__ = ["Descent", "Teacher", "finetune", "held_out", "refine_maps", "refine_weights", "run_model"]
