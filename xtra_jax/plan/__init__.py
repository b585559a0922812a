"""Planning a run without its hardware: what a config needs and costs on a named topology."""
