"""Data, metrics, steps, checkpoints and the training loop."""
