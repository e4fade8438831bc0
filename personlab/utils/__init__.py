"""Files, logs, progress, processes and Git: what every room uses and no room owns."""
