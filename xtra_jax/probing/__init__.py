"""Probes: what a frozen encoder knows, read out by small heads trained on its features.

`heads` has the attentive and the linear head as plain functions, `probe` trains any number of
them in one pass over the data, `baselines` says what raw pixels alone would reach.
"""
