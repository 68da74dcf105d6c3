"""What this machine keeps and runs: files, the database of replies, weights, and llama.cpp's server."""
