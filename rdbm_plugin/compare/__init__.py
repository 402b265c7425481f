"""Side-by-side comparison of restoration methods on the same images by the same protocol."""
