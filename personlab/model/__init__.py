"""The networks, their losses, and checkpoints: our own and published ones."""
