import csv

from convattn.bench import OUT_OF_MEMORY
from tests.bench.rows import STARVED, costs, row


def test_csv_has_a_column_a_field_and_leaves_empty_what_was_not_measured():
    text = costs(row(), row(step="training", **STARVED)).to_csv()
    first, second = csv.DictReader(text.splitlines())
    assert text.splitlines()[0] == (
        "name,device,height,width,dtype,mode,step,batch_size,parameters,macs,activations,"
        "median_ms,low_ms,high_ms,images_per_second,memory_bytes,error"
    )
    assert first["median_ms"] == "2.0"
    assert first["error"] == second["median_ms"] == ""
    assert second["error"] == OUT_OF_MEMORY


def test_table_tells_counts_once_and_every_row():
    large = row(height=64, macs=2_500_000_000, median_ms=1234.5, batch_size=8)
    lines = costs(row(parameters=25_557_032), large, row(**STARVED)).table().splitlines()
    assert lines[0] == "net on cpu, 1 thread, torch 2.11: 25.557 M parameters"
    assert lines[2] == "64x32: 2.500 G multiply-adds, 0.00 M activations"
    assert lines[4].split() == (
        ["size", "dtype", "code", "step", "batch", "ms", "quartiles", "images/s", "memory"]
    )
    assert lines[5].split("  ")[-1].strip() == "3.0 MiB"
    assert "1,234" in lines[6]
    assert lines[7].endswith(OUT_OF_MEMORY)
    assert len({line.index("eager") for line in lines[5:]}) == 1
