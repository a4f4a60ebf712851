"""The kernel of `vllm-v1`: one deployment's steps, plain, cached, asynchronous, in stages or in lockstep."""
