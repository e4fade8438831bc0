"""People in many pictures: a few on somebody's disk (pictures, predict, results), or millions on a cluster
(inputs, batch, attempts, overlays). Both call `personlab.predictor`."""
