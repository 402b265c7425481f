"""The loss, and what a training step draws and compares. Needs torch only."""
