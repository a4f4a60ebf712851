"""Replicas behind a router, each run no further than the router has to look."""
