"""Measures the operators of the machine it runs on, and writes them as a profile (`perf.profiles.own_format`)."""
