"""Ray outside the stages: cluster, training checkpoints, progress board, batch inference."""
