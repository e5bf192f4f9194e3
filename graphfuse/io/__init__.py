"""Reading and writing: checkpoints, models by name, data batches, output directories."""
