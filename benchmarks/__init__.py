"""Every figure that the project quotes, measured side by side in one run: `python -m benchmarks`."""
