from dataclasses import replace

from convattn.classification.sharding import shard_data
from convattn.finetuning.run import run_finetune


def test_finetuned_on_shards_is_finetuned_on_the_folder(config, finished, images, tmp_path):
    shard_data(config.data, tmp_path / "shards", shard_size=20)
    data = replace(config.data, name="webdataset", root=str(tmp_path / "shards"))
    run = run_finetune(replace(config, data=data))
    file = "model.safetensors"
    assert (run.folder / file).read_bytes() == (finished.folder / file).read_bytes()
