"""Promoted models: versions, lineage, the champion, and the rule of promotion."""
