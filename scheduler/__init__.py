"""Programs to dask tasks, executors, `Engine`, `Trainer`; imported as ``flowgrad.scheduler``.

Each wing imports only those above it, and of those only what their doors (``__init__``) hand on. In every wing that lowers,
``lower.py`` writes records and ``work.py`` is what those records run.

``tasks/``
    What is to be done, as plain records under keys that name their content.
``machine/``
    This process and machine: threads, memory, floating point, signals, and what is known of them.
``executors/``
    Where tasks run, and what to do when they fail.
``collective/``
    Workers that run a function together and exchange arrays over the cluster's own connections.
``kernels/``
    A program as something that runs: NumPy calls on kept buffers, or compiled.
``feeds/``
    What people feed: checked, remembered, left where it is, put in order, placed on workers.
``programs/``
    From nodes to a fused, differentiated program, its counts, and values and gradients as records.
``derivatives/``
    Jacobians and per-sample gradients out of values that are kept.
``steps/``
    One optimizer step: its program, its tasks at each grain, its update.
``costs/``
    What work costs on this machine and this cluster, and the plan that follows.
``windows/``
    Windows of optimizer steps: what to do about what happens to them, and the tasks or gangs that run them.
``engine/``
    What people call for values and derivatives.
``watch/``
    One step of one sample, forward and back, as tasks that are timed, and a page that plays it.
``dashboard/``
    A page on dask's own dashboard, about trainings that tell of themselves.
``telling/``
    What a training tells of itself to those who look at the dashboard, and what it measures for them.
``training/``
    A training, from `fit` to its last checkpoint.
"""
