"""The steps that decoding adds to the paper's, by name. docs/notes/decoder.md says what each is worth."""

from typing import Final, Literal, get_args

Extension = Literal[
    "few-candidates",  # score the poses of 3 seeds for each person that may be found
    "mean-shift",  # move traced keypoints towards the votes around them
    "vote-mass",  # equation 3 with the votes around a keypoint in place of p_k
    "person-score",  # lower the score of poses whose cells show no person
    "mask-score",  # score masks by their cells too
    "full-extent",  # equation 6 with lambda_j of all keypoints
    "exclusive-masks",  # a pixel of two people belongs to the one whose pose is closer
    "guided-masks",  # let the outlines of people follow the edges of the photo
]

EXTENSIONS: Final[tuple[Extension, ...]] = get_args(Extension)
