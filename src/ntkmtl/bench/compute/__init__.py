"""Devices, precisions, threads, processes and stop requests: what a run computes with."""
