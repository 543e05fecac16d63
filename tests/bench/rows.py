"""Rows as a measurement would leave them."""

from convattn.bench import OUT_OF_MEMORY, Costs, Row

STARVED = {
    "median_ms": None,
    "low_ms": None,
    "high_ms": None,
    "images_per_second": None,
    "memory_bytes": None,
    "error": OUT_OF_MEMORY,
}


def row(**words):
    usual = {
        "name": "net",
        "device": "cpu",
        "height": 32,
        "width": 32,
        "dtype": "float32",
        "mode": "eager",
        "step": "inference",
        "batch_size": 1,
        "parameters": 10,
        "macs": 20,
        "activations": 30,
        "median_ms": 2.0,
        "low_ms": 1.5,
        "high_ms": 2.5,
        "images_per_second": 500.0,
        "memory_bytes": 3 * 2**20,
        "error": None,
    }
    return Row(**usual | words)


def costs(*rows):
    return Costs(name="net", device="cpu", threads=1, torch="2.11", rows=rows, interrupted=False)
