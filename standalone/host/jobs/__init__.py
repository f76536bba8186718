"""Jobs: the queue, what is asked for, how it is made, and the result."""
