"""Networks, their precision, cost and weight files. Needs torch only."""
