"""Labelled images from disk to uint8 batches: sources, decoding, transforms, the Grain pipeline."""
