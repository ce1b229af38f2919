"""What a pool drives: `cri` (real containers) and `sim` (simulated, for scale and faults)."""
