"""The backends of the live trace against real packets: each test runs once for every backend that the kernel offers."""
