"""Finds or provides the programs the development cluster runs (standard library only)."""

from vknode.devcluster.programs.catalog import ProgramsMissing
from vknode.devcluster.programs.provide import locate, provide

__all__ = ["ProgramsMissing", "locate", "provide"]
