"""From trained weights to restored images: the Restorer, tiles, and the weights that come with the package."""
