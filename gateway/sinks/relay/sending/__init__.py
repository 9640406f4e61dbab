"""One body on its way to one of several destinations: attempts, clocks, connections, health, a spool."""
