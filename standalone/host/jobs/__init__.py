"""Jobs: the queue, the request, how it is run, and the result."""
