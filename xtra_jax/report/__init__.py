"""One page about a run, to read, to keep and to send: what `xtra report` writes."""
