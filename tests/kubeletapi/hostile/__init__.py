"""Peers that send anything, that read nothing, and that may do nothing."""
