"""What there is: the children as the API server has them, and the fleet by its own word."""
