"""Every figure that the project quotes, measured in one run by turns: `python -m benchmarks`."""
