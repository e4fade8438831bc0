"""One module for each stage of dvc.yaml: read inputs, call the library, write outputs."""
