"""How good predictions are: the columns of the paper, with intervals."""
