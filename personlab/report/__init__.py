"""The results of a run as one HTML file that asks nobody for anything."""
