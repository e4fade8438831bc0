"""PersonLab (ECCV 2018): bottom-up multi-person pose estimation and instance segmentation.

The walk of the data is the walk of the folders: `data` reads people and images, `codec` turns people
into fields and fields into people, `model` predicts fields, `metrics` scores people, and `stages` runs
each step of it as a DVC stage on Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personlab.predictor import Predictor

__all__ = ["Predictor", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from personlab import Predictor`, without every `import personlab` waiting for torch."""
    if name == "Predictor":
        from personlab.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
