"""How long a program should take at least, and what keeps it from that."""
