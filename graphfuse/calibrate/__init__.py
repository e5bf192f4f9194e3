"""Calibration: what is done with a few hundred unlabelled inputs after the weights have been averaged.

One pass through the graph, node by node, with all inputs at each node. Batch norms get statistics that fit the fused
model's own activations. Every node that contracts an activation with a parameter gets the weight that best maps the
*fused* model's own input at that node to the mean of the aligned parents' outputs there.
"""

from graphfuse.calibrate.calibration import Calibration, Solved, calibrate

__all__ = ["Calibration", "Solved", "calibrate"]
