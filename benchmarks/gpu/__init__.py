"""All measurements that need a GPU: `bash benchmarks/gpu.sh`."""
