"""The paper's tables (appendix A) and its comparison of one input scale with four.

Input sides are the paper's. They are scaled to params.yaml, where the median of infer.sides stands for 1401.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Value = bool | int | str | list[int]  # of a parameter
Choice = Literal["table4", "table5", "table6-7", "table8-9", "multiscale", "all"]

PAPER_SIDE: Final = 1401  # pixels
_POSES: Final = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
_MASKS: Final = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR20", "ARS", "ARM", "ARL")


@dataclass(frozen=True)
class Row:
    """A configuration: parameters by their dotted names, and the paper's input sides."""

    title: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    sides: tuple[int, ...] = (PAPER_SIDE,)

    def overrides(self, reference: int) -> dict[str, Value]:
        """All parameters that the row sets, where a side of `reference` stands for the paper's 1401."""
        sides = [scaled_side(side, reference) for side in self.sides]
        return {"infer.sides": sides, "decode.extensions": [], **self.settings}  # the paper's decoder

    def label(self, reference: int) -> str:
        """The title; if it names the paper's sides and they are others here, with those behind it."""
        here = " ".join(str(scaled_side(side, reference)) for side in self.sides)
        paper = " ".join(map(str, self.sides))
        return self.title if here == paper or paper not in self.title else f"{self.title} (here {here})"


@dataclass(frozen=True)
class Table:
    """Rows with the paper's figures for one task, and which differences between them the paper discusses."""

    name: Choice  # two tables may share it, and then their rows: one for keypoints, one for masks
    title: str
    task: Literal["keypoints", "segm"]
    rows: tuple[Row, ...]
    figures: tuple[tuple[float, ...], ...]  # by row and column
    claims: tuple[str, ...] = ("AP",)  # columns that the paper compares
    baseline: int = 0  # the row that others are compared with

    @property
    def columns(self) -> tuple[str, ...]:
        return _POSES if self.task == "keypoints" else _MASKS

    def difference(self, row: int, column: str) -> float:
        """The paper's value of a row minus that of the baseline."""
        index = self.columns.index(column)
        return round(self.figures[row][index] - self.figures[self.baseline][index], 3)


def scaled_side(side: int, reference: int) -> int:
    """A side of the paper, rounded to 8 n + 1 as all of the paper's, where its 1401 is `reference`."""
    cells = round((side - 1) * (reference - 1) / (PAPER_SIDE - 1) / 8)
    return reference if side == PAPER_SIDE else 8 * max(1, cells) + 1


_SIZES: Final = tuple((stride, side) for stride in (32, 16, 8) for side in range(401, 1802, 200))
_BY_SIZE: Final = tuple(
    Row(f"Stride {stride}, input {side}", {"infer.stride": stride}, (side,)) for stride, side in _SIZES
)
_SCORING: Final = tuple(
    Row(f"{title}, {nms}", {"decode.scoring": scoring, "decode.nms": nms})
    for nms in ("hard", "soft")
    for title, scoring in (("Hough", "hough"), ("Expected-OKS", "expected-oks"))
)
_REFINEMENT: Final = (
    Row("Without offset refinement", {"model.refine": False}),
    Row("With offset refinement", {"model.refine": True}),
)
_IMPUTATION: Final = (
    Row("Without imputation", {"targets.imputed": False}),
    Row("With imputation", {"targets.imputed": True}),
)
_SCALES: Final = (
    Row("Single-scale, 1401"),
    Row("Multi-scale, 601 1201 1801 2401", sides=(601, 1201, 1801, 2401)),
)

# fmt: off
TABLES: Final = (
    Table("table4", "Table 4: input image size and output stride", "keypoints", _BY_SIZE, (
        # stride 32, inputs 401, 601, ..., 1801
        (0.356, 0.553, 0.358, 0.157, 0.625, 0.384, 0.572, 0.389, 0.176, 0.670),
        (0.481, 0.700, 0.500, 0.310, 0.712, 0.516, 0.723, 0.536, 0.344, 0.752),
        (0.559, 0.780, 0.595, 0.433, 0.736, 0.598, 0.807, 0.633, 0.470, 0.777),
        (0.609, 0.830, 0.655, 0.519, 0.740, 0.649, 0.851, 0.693, 0.556, 0.780),
        (0.630, 0.842, 0.684, 0.565, 0.731, 0.673, 0.867, 0.723, 0.602, 0.774),
        (0.641, 0.850, 0.694, 0.591, 0.720, 0.684, 0.871, 0.733, 0.628, 0.765),
        (0.639, 0.849, 0.696, 0.603, 0.703, 0.685, 0.874, 0.738, 0.639, 0.751),
        (0.634, 0.840, 0.690, 0.609, 0.681, 0.682, 0.868, 0.734, 0.645, 0.736),
        # stride 16, inputs 401, 601, ..., 1801
        (0.400, 0.603, 0.413, 0.206, 0.662, 0.432, 0.622, 0.448, 0.229, 0.710),
        (0.532, 0.760, 0.563, 0.386, 0.731, 0.570, 0.784, 0.602, 0.423, 0.775),
        (0.600, 0.821, 0.643, 0.497, 0.746, 0.641, 0.846, 0.683, 0.535, 0.789),
        (0.636, 0.850, 0.688, 0.559, 0.750, 0.677, 0.873, 0.727, 0.595, 0.793),
        (0.651, 0.860, 0.705, 0.593, 0.740, 0.695, 0.884, 0.746, 0.630, 0.786),
        (0.656, 0.859, 0.714, 0.611, 0.728, 0.701, 0.885, 0.754, 0.647, 0.779),
        (0.654, 0.858, 0.714, 0.622, 0.708, 0.701, 0.885, 0.756, 0.659, 0.762),
        (0.645, 0.847, 0.702, 0.624, 0.686, 0.696, 0.878, 0.750, 0.660, 0.746),
        # stride 8, inputs 401, 601, ..., 1801
        (0.405, 0.599, 0.425, 0.220, 0.667, 0.433, 0.613, 0.452, 0.232, 0.709),
        (0.541, 0.764, 0.577, 0.406, 0.733, 0.577, 0.787, 0.613, 0.435, 0.774),
        (0.612, 0.824, 0.658, 0.517, 0.752, 0.650, 0.849, 0.693, 0.550, 0.790),
        (0.646, 0.854, 0.698, 0.576, 0.753, 0.684, 0.873, 0.735, 0.608, 0.793),
        (0.659, 0.862, 0.711, 0.607, 0.743, 0.700, 0.885, 0.750, 0.639, 0.786),
        (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
        (0.662, 0.861, 0.718, 0.632, 0.712, 0.706, 0.885, 0.755, 0.665, 0.765),
        (0.652, 0.855, 0.714, 0.634, 0.690, 0.701, 0.881, 0.755, 0.667, 0.749),
    ), baseline=_SIZES.index((8, PAPER_SIDE))),
    Table("table5", "Table 5: keypoint scoring and non-maximum suppression", "keypoints", _SCORING, (
        (0.632, 0.838, 0.693, 0.593, 0.698, 0.682, 0.862, 0.733, 0.635, 0.751),
        (0.647, 0.843, 0.703, 0.599, 0.718, 0.683, 0.865, 0.732, 0.633, 0.759),
        (0.645, 0.853, 0.703, 0.610, 0.702, 0.706, 0.886, 0.757, 0.657, 0.777),
        (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
    ), baseline=3),
    Table("table6-7", "Table 6: offset refinement, keypoints", "keypoints", _REFINEMENT, (
        (0.632, 0.856, 0.689, 0.603, 0.678, 0.679, 0.883, 0.736, 0.639, 0.735),
        (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
    ), claims=("AP", "APL")),
    Table("table6-7", "Table 7: offset refinement, segmentation", "segm", _REFINEMENT, (
        (0.355, 0.646, 0.354, 0.166, 0.461, 0.501, 0.146, 0.393, 0.417, 0.209, 0.525, 0.597),
        (0.382, 0.661, 0.397, 0.164, 0.476, 0.592, 0.162, 0.416, 0.439, 0.204, 0.532, 0.681),
    ), claims=("AP", "APL")),
    Table("table8-9", "Table 8: imputed keypoints of small people, keypoints", "keypoints", _IMPUTATION, (
        (0.665, 0.862, 0.719, 0.623, 0.732, 0.707, 0.887, 0.757, 0.656, 0.779),
        (0.657, 0.864, 0.718, 0.617, 0.723, 0.705, 0.891, 0.760, 0.655, 0.776),
    )),
    Table("table8-9", "Table 9: imputed keypoints of small people, segmentation", "segm", _IMPUTATION, (
        (0.338, 0.560, 0.368, 0.076, 0.459, 0.591, 0.156, 0.370, 0.383, 0.080, 0.514, 0.680),
        (0.382, 0.661, 0.397, 0.164, 0.476, 0.592, 0.162, 0.416, 0.439, 0.204, 0.532, 0.681),
    ), claims=("AP", "APS")),
    Table("multiscale", "One scale and several, keypoints (Table 1, test-dev)", "keypoints", _SCALES, (
        (0.655, 0.871, 0.714, 0.613, 0.715, 0.701, 0.897, 0.757, 0.650, 0.771),
        (0.678, 0.886, 0.744, 0.630, 0.748, 0.745, 0.922, 0.804, 0.686, 0.825),
    )),
    Table("multiscale", "One scale and several, segmentation (Table 3, val, 20 proposals)", "segm", _SCALES, (
        (0.382, 0.661, 0.397, 0.164, 0.476, 0.592, 0.162, 0.416, 0.439, 0.204, 0.532, 0.681),
        (0.414, 0.684, 0.447, 0.213, 0.492, 0.621, 0.170, 0.454, 0.492, 0.278, 0.566, 0.728),
    ), claims=("AP", "APS")),
)
# fmt: on
