"""What is around the wings: handlers, the application, processes that drain; metrics, and the demo destination."""
