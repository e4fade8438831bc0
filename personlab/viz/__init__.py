"""Drawing of people, masks and poses, contact sheets, and (`viz.fields`, which imports torch) fields."""

from personlab.viz.people import draw_annotations, draw_note, draw_people, draw_pose, draw_scores
from personlab.viz.sheet import contact_sheet, jpeg, write_jpeg

__all__ = [
    "contact_sheet",
    "draw_annotations",
    "draw_note",
    "draw_people",
    "draw_pose",
    "draw_scores",
    "jpeg",
    "write_jpeg",
]
