"""Everything that knows Ray besides the stages: cluster, training checkpoints, progress board, batch inference."""
