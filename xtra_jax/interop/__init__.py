"""Weights of other frameworks: their names, their layouts, and ours."""
