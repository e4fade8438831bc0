"""PersonLab (ECCV 2018): bottom-up multi-person pose estimation and instance segmentation.

The walk of the data is the walk of the folders: `data` reads people and images, `codec` turns people
into fields and fields into people, `model` predicts fields, `metrics` scores people, and `stages` runs
each step of it as a DVC stage on Ray.
"""

__version__ = "0.1.0"
