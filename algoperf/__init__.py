"""AlgoPerf: is a training algorithm really faster, and what does its model cost?

Importing this package imports nothing else, so that `algoperf --help` and the
scoring stay quick; import the modules: `from algoperf import spec`.
"""

__version__ = "0.1.0"
