"""What the speed claims are measured with: `python -m benchmarks`, or `make bench`."""
