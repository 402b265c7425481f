"""Training objectives. Need torch only."""
