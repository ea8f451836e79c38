"""The deterministic loop and the fuzzer: the real engine, run under every schedule and failure we can choose."""
