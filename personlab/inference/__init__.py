"""Find people in images: `predict` on one machine, or `job`, any number of images in parts, which
personlab/distributed/batch.py computes on a cluster."""
