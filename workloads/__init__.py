"""The fixed problems, one package per family; `<family>/workload.py` lists them."""
