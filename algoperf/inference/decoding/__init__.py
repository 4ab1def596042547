"""Ways to an answer: speculative decoding and its kin, measured and modelled."""
