"""A runtime in memory: for scale and for faults. It runs nothing and says so."""
