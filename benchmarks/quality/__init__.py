"""How well parents fuse: their data, networks, training, every method's cells and the tables made from the records."""
