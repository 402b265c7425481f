"""Option files: reading them, checking values, building what a block describes. Needs no torch."""
