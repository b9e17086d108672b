"""The product shown from end to end on one machine: what `make demo`, `make up` and `make down` run."""
