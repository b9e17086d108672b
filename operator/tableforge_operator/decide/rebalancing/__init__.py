"""How load is kept even among instances: what to move, when, and what became of it. Pure: no I/O."""
