"""Where rooms live: each has a home among the instances, kept in Redis beside the registry.

No message ever waits for it: any instance serves any room. A home makes a room cheap, and can be moved.
"""
