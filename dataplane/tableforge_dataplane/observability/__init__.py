"""What an instance tells of itself: logs and metrics."""
