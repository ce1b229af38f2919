"""The development cluster: a real control plane, one containerd per zone, pools and the agent.

Kept free of imports: `python -m vknode.devcluster.programs` runs before the
virtual environment exists, with nothing but the standard library.
"""
