"""One module for each stage of dvc.yaml: read inputs, call the science, write outputs. Only here is Ray."""
