"""The lifecycle of one sandbox as a pure state machine."""
