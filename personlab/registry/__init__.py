"""Which trained models were good enough: where each came from, promotion's rule, who is champion now."""
