"""What is served over HTTP about the running program: the dashboard, its interface, the PAC file and the metrics."""
