"""The planner before a model of a fleet, and how long a large plan takes."""
