"""Where the trials of a sweep run: processes of this machine, one after another."""
