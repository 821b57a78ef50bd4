"""Compiled pipelines, checked as the Kubeflow backend would check them."""
