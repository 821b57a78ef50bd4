"""A Kubeflow Pipelines server for tests, held to the recordings of a real one.

What the API refuses is in specification.py, what a task's driver does in driver.py, what a step's
container does in executors.py, Argo's nodes in nodes.py, a run's course in run.py, HTTP in
server.py. The recordings are in tests/pipelines/recordings.
"""
