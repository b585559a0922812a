"""Prepares data sets as ArrayRecord: `xtra prepare`."""
