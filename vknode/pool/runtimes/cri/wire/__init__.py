"""Generated from proto/cri by proto/generate.py. Do not edit."""
