"""COCO metrics of predictions, in the columns of the paper, with confidence intervals."""
