"""Models that run on this machine: files of weights, and llama.cpp's server."""
