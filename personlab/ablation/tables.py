"""The tables of the paper: which parameters each row sets, and what the paper found with them.

Image sides are the paper's. What they become here is a matter of proportion: the paper's 1401 pixels are the
middle one of the sides that params.yaml names, and the others are to it as in the paper. All rows but the
pyramids look at one side only, as the paper's do, whatever params.yaml says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:  # --help must not wait for pycocotools
    from personlab.metrics.coco import Task

Value = bool | int | str | tuple[int, ...]  # of a parameter

PAPER_SIDE: Final = 1401
_LATTICE: Final = 8  # sides are 8 n + 1, as all of the paper's
_POSES: Final = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
_MASKS: Final = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR20", "ARS", "ARM", "ARL")


@dataclass(frozen=True)
class Row:
    """A configuration and the paper's figures for it."""

    title: str
    figures: tuple[float, ...]  # in the order of the table's columns
    settings: Mapping[str, Value]  # parameters by their dotted names
    sides: tuple[int, ...] = (PAPER_SIDE,)  # the paper's

    def sides_here(self, reference: int) -> tuple[int, ...]:
        """The sides in pixels, where `reference` stands for the paper's 1401."""
        return tuple(side_here(side, reference) for side in self.sides)

    def overrides(self, reference: int) -> dict[str, Value]:
        """The parameters that the row sets."""
        return {"infer.sides": self.sides_here(reference), **self.settings}

    def label(self, reference: int) -> str:
        """The title, and what the sides that it names have become."""
        here = self.sides_here(reference)
        if here == self.sides or str(self.sides[0]) not in self.title:
            return self.title
        return f"{self.title} (here {' '.join(map(str, here))})"


@dataclass(frozen=True)
class Table:
    """A table of the paper, for one task."""

    name: str
    title: str
    task: "Task"
    rows: tuple[Row, ...]
    baseline: Row  # one of the rows: what differences are taken to
    claims: tuple[str, ...] = ("AP",)  # the columns that the paper speaks of
    growth: tuple[str, float] | None = None  # a column, and at least how many times its baseline it should be

    @property
    def columns(self) -> tuple[str, ...]:
        return _POSES if self.task == "keypoints" else _MASKS

    def paper(self, row: Row, column: str) -> float:
        return row.figures[self.columns.index(column)]


def side_here(paper: int, reference: int) -> int:
    """What is to `reference` as `paper` is to the paper's 1401 pixels, rounded to 8 n + 1.

    `reference` itself stays as it is.
    """
    if paper == PAPER_SIDE:
        return reference
    whole = (PAPER_SIDE - 1) * _LATTICE
    cells = ((paper - 1) * (reference - 1) + whole // 2) // whole
    return _LATTICE * max(1, cells) + 1


# --- Table 4: keypoints by input size and output stride -----------------------------------------------------

_BY_STRIDE_AND_SIDE: Final = {
    32: {
        401: (0.356, 0.553, 0.358, 0.157, 0.625, 0.384, 0.572, 0.389, 0.176, 0.670),
        601: (0.481, 0.700, 0.500, 0.310, 0.712, 0.516, 0.723, 0.536, 0.344, 0.752),
        801: (0.559, 0.780, 0.595, 0.433, 0.736, 0.598, 0.807, 0.633, 0.470, 0.777),
        1001: (0.609, 0.830, 0.655, 0.519, 0.740, 0.649, 0.851, 0.693, 0.556, 0.780),
        1201: (0.630, 0.842, 0.684, 0.565, 0.731, 0.673, 0.867, 0.723, 0.602, 0.774),
        1401: (0.641, 0.850, 0.694, 0.591, 0.720, 0.684, 0.871, 0.733, 0.628, 0.765),
        1601: (0.639, 0.849, 0.696, 0.603, 0.703, 0.685, 0.874, 0.738, 0.639, 0.751),
        1801: (0.634, 0.840, 0.690, 0.609, 0.681, 0.682, 0.868, 0.734, 0.645, 0.736),
    },
    16: {
        401: (0.400, 0.603, 0.413, 0.206, 0.662, 0.432, 0.622, 0.448, 0.229, 0.710),
        601: (0.532, 0.760, 0.563, 0.386, 0.731, 0.570, 0.784, 0.602, 0.423, 0.775),
        801: (0.600, 0.821, 0.643, 0.497, 0.746, 0.641, 0.846, 0.683, 0.535, 0.789),
        1001: (0.636, 0.850, 0.688, 0.559, 0.750, 0.677, 0.873, 0.727, 0.595, 0.793),
        1201: (0.651, 0.860, 0.705, 0.593, 0.740, 0.695, 0.884, 0.746, 0.630, 0.786),
        1401: (0.656, 0.859, 0.714, 0.611, 0.728, 0.701, 0.885, 0.754, 0.647, 0.779),
        1601: (0.654, 0.858, 0.714, 0.622, 0.708, 0.701, 0.885, 0.756, 0.659, 0.762),
        1801: (0.645, 0.847, 0.702, 0.624, 0.686, 0.696, 0.878, 0.750, 0.660, 0.746),
    },
    8: {
        401: (0.405, 0.599, 0.425, 0.220, 0.667, 0.433, 0.613, 0.452, 0.232, 0.709),
        601: (0.541, 0.764, 0.577, 0.406, 0.733, 0.577, 0.787, 0.613, 0.435, 0.774),
        801: (0.612, 0.824, 0.658, 0.517, 0.752, 0.650, 0.849, 0.693, 0.550, 0.790),
        1001: (0.646, 0.854, 0.698, 0.576, 0.753, 0.684, 0.873, 0.735, 0.608, 0.793),
        1201: (0.659, 0.862, 0.711, 0.607, 0.743, 0.700, 0.885, 0.750, 0.639, 0.786),
        1401: (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
        1601: (0.662, 0.861, 0.718, 0.632, 0.712, 0.706, 0.885, 0.755, 0.665, 0.765),
        1801: (0.652, 0.855, 0.714, 0.634, 0.690, 0.701, 0.881, 0.755, 0.667, 0.749),
    },
}
_SIZES: Final = {
    (stride, side): Row(f"Stride {stride}, input {side}", figures, {"infer.stride": stride}, (side,))
    for stride, by_side in _BY_STRIDE_AND_SIDE.items()
    for side, figures in by_side.items()
}
_TABLE4: Final = Table(
    "table4",
    "Table 4: input image size and output stride",
    "keypoints",
    tuple(_SIZES.values()),
    baseline=_SIZES[8, PAPER_SIDE],
)

# --- Table 5: keypoints by scoring and non-maximum suppression ----------------------------------------------


def _scored(scoring: str, nms: str, figures: tuple[float, ...]) -> Row:
    title = f"{'Expected-OKS' if scoring == 'expected-oks' else 'Hough'}, {nms}"
    return Row(title, figures, {"decode.scoring": scoring, "decode.nms": nms})


_FINAL_SCORING: Final = _scored(
    "expected-oks", "soft", (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779)
)
_TABLE5: Final = Table(
    "table5",
    "Table 5: keypoint scoring and non-maximum suppression",
    "keypoints",
    (
        _scored("hough", "hard", (0.632, 0.838, 0.693, 0.593, 0.698, 0.682, 0.862, 0.733, 0.635, 0.751)),
        _scored(
            "expected-oks", "hard", (0.647, 0.843, 0.703, 0.599, 0.718, 0.683, 0.865, 0.732, 0.633, 0.759)
        ),
        _scored("hough", "soft", (0.645, 0.853, 0.703, 0.610, 0.702, 0.706, 0.886, 0.757, 0.657, 0.777)),
        _FINAL_SCORING,
    ),
    baseline=_FINAL_SCORING,
)

# --- Tables 6 to 9: with and without, keypoints and masks ---------------------------------------------------


def _with_and_without(
    name: str,
    title: str,
    task: "Task",
    claims: tuple[str, ...],
    what: str,
    parameter: str,
    without: tuple[float, ...],
    with_it: tuple[float, ...],
    growth: tuple[str, float] | None = None,
) -> Table:
    """Differences are what `parameter` brings."""
    baseline = Row(f"Without {what}", without, {parameter: False})
    rows = (baseline, Row(f"With {what}", with_it, {parameter: True}))
    return Table(name, title, task, rows, baseline, claims, growth)


_REFINEMENT: Final = ("offset refinement", "model.refine")
_IMPUTATION: Final = ("imputation", "targets.imputed")
_TABLE6: Final = _with_and_without(
    "table6",
    "Table 6: offset refinement, keypoints",
    "keypoints",
    ("AP", "APL"),
    *_REFINEMENT,
    (0.632, 0.856, 0.689, 0.603, 0.678, 0.679, 0.883, 0.736, 0.639, 0.735),
    (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
)
_TABLE7: Final = _with_and_without(
    "table7",
    "Table 7: offset refinement, segmentation",
    "segm",
    ("AP", "APL"),
    *_REFINEMENT,
    (0.355, 0.646, 0.354, 0.166, 0.461, 0.501, 0.146, 0.393, 0.417, 0.209, 0.525, 0.597),
    (0.382, 0.661, 0.397, 0.164, 0.476, 0.592, 0.162, 0.416, 0.439, 0.204, 0.532, 0.681),
)
_TABLE8: Final = _with_and_without(
    "table8",
    "Table 8: imputed keypoints of small people, keypoints",
    "keypoints",
    ("AP",),
    *_IMPUTATION,
    (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
    (0.657, 0.864, 0.718, 0.617, 0.723, 0.705, 0.891, 0.760, 0.655, 0.776),
)
_TABLE9: Final = _with_and_without(
    "table9",
    "Table 9: imputed keypoints of small people, segmentation",
    "segm",
    ("AP", "APS"),
    *_IMPUTATION,
    (0.338, 0.560, 0.368, 0.076, 0.459, 0.591, 0.156, 0.370, 0.383, 0.080, 0.514, 0.680),
    (0.382, 0.661, 0.397, 0.164, 0.476, 0.592, 0.162, 0.416, 0.439, 0.204, 0.532, 0.681),
    growth=("APS", 1.5),
)

# --- One scale and several: the rows of Tables 1 and 3 with a ResNet-101 ------------------------------------

_PYRAMID: Final = (601, 1201, 1801, 2401)


def _scales(
    name: str,
    title: str,
    task: "Task",
    claims: tuple[str, ...],
    single: tuple[float, ...],
    several: tuple[float, ...],
) -> Table:
    baseline = Row("Single-scale, 1401", single, {}, (PAPER_SIDE,))
    rows = (baseline, Row("Multi-scale, 601 1201 1801 2401", several, {}, _PYRAMID))
    return Table(name, title, task, rows, baseline, claims)


_TABLE1: Final = _scales(
    "multiscale-keypoints",
    "One scale and several, keypoints (Table 1, test-dev)",
    "keypoints",
    ("AP",),
    (0.655, 0.871, 0.714, 0.613, 0.715, 0.701, 0.897, 0.757, 0.650, 0.771),
    (0.678, 0.886, 0.744, 0.630, 0.748, 0.745, 0.922, 0.804, 0.686, 0.825),
)
_TABLE3: Final = _scales(
    "multiscale-segm",
    "One scale and several, segmentation (Table 3, val, 20 proposals)",
    "segm",
    ("AP", "APS"),
    (0.382, 0.661, 0.397, 0.164, 0.476, 0.592, 0.162, 0.416, 0.439, 0.204, 0.532, 0.681),
    (0.414, 0.684, 0.447, 0.213, 0.492, 0.621, 0.170, 0.454, 0.492, 0.278, 0.566, 0.728),
)

TABLES: Final = (_TABLE4, _TABLE5, _TABLE6, _TABLE7, _TABLE8, _TABLE9, _TABLE1, _TABLE3)

# What may be asked for. The two tables of a pair need the same experiments.
Choice = Literal[
    "table4",
    "table5",
    "table6",
    "table7",
    "table8",
    "table9",
    "table6-7",
    "table8-9",
    "multiscale",
    "all",
]
CHOICES: Final[Mapping[Choice, tuple[Table, ...]]] = MappingProxyType(
    {
        "table4": (_TABLE4,),
        "table5": (_TABLE5,),
        "table6": (_TABLE6,),
        "table7": (_TABLE7,),
        "table8": (_TABLE8,),
        "table9": (_TABLE9,),
        "table6-7": (_TABLE6, _TABLE7),
        "table8-9": (_TABLE8, _TABLE9),
        "multiscale": (_TABLE1, _TABLE3),
        "all": TABLES,
    }
)
