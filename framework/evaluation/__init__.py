"""Metrics of the domain, suites and the report page."""
