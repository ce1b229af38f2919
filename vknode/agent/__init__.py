"""The agent: owns a set of virtual nodes, keeps their leases, syncs their Pods."""
