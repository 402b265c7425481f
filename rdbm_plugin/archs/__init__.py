"""Networks. Need torch only."""
