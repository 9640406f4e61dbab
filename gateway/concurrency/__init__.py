"""Bytes and work in progress: pipes whose windows are in bytes, jobs in threads, work that somebody else may end."""
