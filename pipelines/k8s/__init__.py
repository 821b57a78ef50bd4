"""Kubernetes objects as files: read with their lines, rendered, and checked value by value."""
