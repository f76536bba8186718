"""What the tests of several methods need: pictures to send, jobs on the standalone host, and what is seen of them."""
