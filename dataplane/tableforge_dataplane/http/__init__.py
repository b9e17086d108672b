"""Plain HTTP: the checks on the clients' port, metrics and the fleet's view on the internal one."""
