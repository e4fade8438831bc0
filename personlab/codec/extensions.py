"""The steps that decoding adds to the paper's, by name. docs/notes/decoder.md says what each is worth."""

from typing import Final, Literal, get_args

Extension = Literal[
    "few-candidates",  # score the poses of 3 seeds for each person that may be found, not of 10
    "full-extent",  # equation 6 with lambda_j of all keypoints
    "mean-shift",  # move traced keypoints towards the votes around them
    "person-score",  # score poses and masks by certain keypoints, p_S and embeddings
    "exclusive-masks",  # a pixel of two people belongs to the better pose if that is closer
    "guided-masks",  # let the outlines of people follow the edges of the photo
]

EXTENSIONS: Final[tuple[Extension, ...]] = get_args(Extension)
