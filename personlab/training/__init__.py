"""Training in plain PyTorch: one step, weight averaging, and validation during training."""
