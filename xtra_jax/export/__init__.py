"""Weights for other programs: safetensors, PyTorch, timm and StableHLO."""
