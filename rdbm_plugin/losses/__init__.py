"""The loss, and the random draws and the objective of a training step. Needs torch only."""
