"""Ray: the cluster, training checkpoints, the progress board, batch inference."""
