"""Everything that only a GPU can show: `bash benchmarks/gpu.sh`."""
