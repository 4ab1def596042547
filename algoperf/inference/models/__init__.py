"""The served model: a decoder with a cache, its shapes, and how weights are stored."""
