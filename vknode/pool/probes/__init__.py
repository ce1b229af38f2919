"""Probes and hooks over the network: httpGet, tcpSocket and grpc, as a kubelet asks them.

They run in the pool's process against the sandbox's IP; no container runtime is asked.
One file each; `gowords` words outcomes as a kubelet's users know them.
"""
