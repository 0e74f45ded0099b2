"""Every figure that the project quotes, measured in turn in one run: `python -m benchmarks`."""
