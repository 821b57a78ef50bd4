"""What talks to a cluster: submitting, watching, checking it first, and running one stage."""
