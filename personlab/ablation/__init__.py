"""The paper's ablations (appendix A) and its multi-scale comparison, each row of a table a DVC experiment."""
