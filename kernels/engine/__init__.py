"""The compiled CPU engine: its sources, and the door to the libraries built from them."""
