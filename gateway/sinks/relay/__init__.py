"""Uploads passed on to another API: what a request looks like (`sink` is the door). How it is sent: `sending`."""
