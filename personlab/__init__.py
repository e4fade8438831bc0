"""PersonLab (ECCV 2018): bottom-up multi-person pose estimation and instance segmentation.

`data` reads people and images, `codec` encodes people as fields and decodes fields to people, `model`
predicts fields, `metrics` scores people, and `stages` runs each step as a DVC stage.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personlab.predictor import Predictor

__all__ = ["Predictor", "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import `Predictor` only when it is used: `import personlab` must not wait for torch."""
    if name == "Predictor":
        from personlab.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
