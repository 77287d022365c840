"""Evaluations side by side: scores of runs and of papers in one table, and as one page."""
