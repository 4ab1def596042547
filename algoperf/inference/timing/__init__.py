"""How long a program takes on a machine: protocol, profiles, idealized runtime."""
