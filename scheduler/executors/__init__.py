"""Where tasks run: one short file per executor, one small interface."""

from .base import Executor, Handle, Worker
from .local import LocalExecutor

__all__ = ["Executor", "Handle", "LocalExecutor", "Worker"]
