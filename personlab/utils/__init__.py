"""Files, storage, logs, progress, processes, Git: helpers for all packages, without knowledge of poses."""
