"""Windows of optimizer steps: what to do about what happens to them, and the tasks or gangs that run them."""

from .windows import Windows
