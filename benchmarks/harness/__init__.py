"""What evaluations and benchmarks share: a host to measure, UNets of full size, reports, and the page of figures."""
