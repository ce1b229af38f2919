"""The composition root: joins the agent and the kubelet API in one process."""
