"""Option files: reads them, checks their values and builds what a block describes. Needs no torch."""
