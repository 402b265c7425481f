"""Networks, their precision, their cost and their weight files. Needs torch only."""
