import pytest

from tests.campaign.running import Case, run_cases
from tests.mutations import mutate, mutate_json

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.campaign("config", 300)
def test_mutated_configs(row, runs, tmp_path):
    """A run's config.json with bytes changed, and with values replaced, removed and renamed, the
    run then given to `predict`, `explain`, `evaluate`, `export` and `train --resume`."""

    def case(seed):
        command = ("predict", "explain", "export", "evaluate", "predict", "resume")[seed % 6]

        def words(folder):
            run = runs.copy(runs.stopped if command == "resume" else runs.finished, folder)
            file = run / "config.json"
            change = mutate if seed % 4 == 0 else mutate_json
            file.write_bytes(change(file.read_bytes(), seed))
            return {
                "predict": ["predict", "run", runs.image, "--out", "out"],
                "explain": ["explain", "run", runs.image, "--out", "out"],
                "export": ["export", "run", "--format", "safetensors", "--out", "x.safetensors"],
                "evaluate": ["evaluate", "run", "--device", "cpu", "--out", "out"],
                "resume": ["train", "--resume", "run"],
            }[command]

        return Case(f"{command}, seed {seed}", words)

    run_cases(map(case, range(row.total)), row, tmp_path / "cases")
    row.check()
