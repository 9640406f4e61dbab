"""Uploads passed on to another API: what a request looks like. How it is sent: `sending`."""
