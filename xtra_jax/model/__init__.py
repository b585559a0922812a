"""The paper: block causal masks, the vision transformer, the predictor and the objective."""
