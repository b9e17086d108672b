"""What things cost. Each file runs by itself: `python -m benchmarks.rooms`."""
