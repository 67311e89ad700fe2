"""Devices, precisions, threads, versions and processes: what a run computes with."""
