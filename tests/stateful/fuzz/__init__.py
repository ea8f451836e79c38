"""The fuzzer: programs of clients, operators and faults against the real engine, on schedules of every kind, judged from outside and inside."""
