"""Jobs that run in their own process: their files, log and packages, and how the host starts and stops them."""
