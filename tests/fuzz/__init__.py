"""Whatever bytes come: the readers of the gateway refuse them by their own errors, and read them in one way."""
