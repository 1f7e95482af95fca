"""One step of one sample, forward and back, as tasks that are timed, and a page that plays it."""

from .call import watch
