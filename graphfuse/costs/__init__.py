"""Costs: how alike two units are, by their weights or by their activations."""
