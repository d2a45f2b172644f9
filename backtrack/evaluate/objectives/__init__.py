"""Objectives: from documents to one score an item."""
