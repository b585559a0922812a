"""Probes: what a frozen encoder knows, read out by small heads trained on its features.

`heads` has the attentive and the linear head as plain functions, `grid` says which of them a config
asks for, `sweep` and `probe` train all of them in one pass over the data, `job` does that for one
data set and `study` for several, `results` keeps what was found, and `table` and `plots` show it.
`few_shot` and `knn` need no training, and `baselines` says what raw pixels alone would reach.
"""
