"""Predict over HTTP: a page to try a model with, and the JSON API behind it."""
