"""Meshes of devices and the shardings of arrays on them."""
