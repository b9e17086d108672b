"""What things cost: `python -m benchmarks` beside other servers, the other files each by itself."""
