"""The published pretraining runs."""
