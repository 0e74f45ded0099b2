"""The models in memory, and the sources that choose them."""
