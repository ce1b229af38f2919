"""vknode shows a serverless container pool to Kubernetes as many virtual nodes."""

__version__ = "0.1.0"
