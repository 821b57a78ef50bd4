"""`python -m pipelines` is the `raft` command."""

from pipelines.cli import main

main()
