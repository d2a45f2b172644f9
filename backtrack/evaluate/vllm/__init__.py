"""Objectives measured by one vLLM engine, started once for a run; vLLM is imported here only."""
