"""Generated from proto/vknode/pool/v1 by proto/generate.py. Do not edit."""
