"""Language modelling with a decoder: FineWeb-Edu, the King James Bible at mini."""
