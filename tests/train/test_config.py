"""Options and the ranks they ask for."""

import dataclasses
import json

import pytest

from dmt_kernels.spec import InputError, Payloads
from dmt_kernels.train.config import TrainConfig, local_options, resolve_topology


def test_json_round_trip(tmp_path):
    config = TrainConfig(data="npz:x", towers=3, compression=1.5, out="somewhere", early_stop=2)
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config


def test_a_run_of_before_there_was_a_choice_has_what_there_was(tmp_path):
    path = tmp_path / "config.json"
    TrainConfig(tower_module="dcn", compression=4, dense_lr=0.02).save(path)
    old = json.loads(path.read_text())
    del old["over_arch_width"], old["tower_lr"]
    path.write_text(json.dumps(old))
    before = {"over_arch_width": "towers", "tower_lr": 0.02}
    assert TrainConfig.load(path) == TrainConfig(tower_module="dcn", compression=4, dense_lr=0.02, **before)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", json.dumps({"colour": "red"})], ids=["missing", "no JSON", "a list", "foreign"]
)
def test_not_a_config(content, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="config.json"):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    ("given", "world", "local_world", "expected"),
    [
        ((None, None), None, None, (1, 1)),
        ((2, 3), None, None, (2, 3)),
        ((None, None), 8, 4, (2, 4)),
        ((4, None), 8, 4, (4, 2)),
        ((None, 2), 8, 4, (4, 2)),
        ((None, None), 4, 4, (1, 4)),
    ],
    ids=["alone", "alone, as given", "a tower per host", "towers given", "members given", "one host"],
)
def test_towers_and_members(given, world, local_world, expected):
    config = TrainConfig(towers=given[0], members=given[1], batch_size=48)
    placed = resolve_topology(config, world, local_world)
    assert (placed.towers, placed.members) == expected


@pytest.mark.parametrize(
    ("options", "world", "sentence"),
    [
        ({"towers": 2, "members": 2}, 6, "6 ranks"),
        ({"towers": 4}, 6, "6 ranks"),
        ({"local": True}, 2, "--local"),
        ({"towers": 3}, 2, "2 ranks is not 3 towers x 1 members"),
    ],
    ids=["too few", "does not divide", "local", "more towers than ranks"],
)
def test_ranks_that_do_not_fit(options, world, sentence):
    with pytest.raises(InputError, match=sentence):
        resolve_topology(TrainConfig(**options), world, world)


def test_amp_and_float64_exclude_each_other():
    with pytest.raises(InputError, match="--amp and --dtype float64"):
        TrainConfig(amp=True, dtype="float64")


def test_payloads():
    config = TrainConfig(payload="bf16", tower_payload="fp16", stochastic=True)
    assert config.payloads() == Payloads.of("bf16", "fp16", stochastic=True)
    assert TrainConfig().payloads() == Payloads()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"placement": "owner"}, "--placement owner needs --tower-module dlrm"),
        (
            {"placement": "owner", "tower_module": "dcn"},
            "--placement owner needs --tower-module dlrm, a linear one",
        ),
        ({"placement": "auto", "exchange": "flat"}, "--placement auto needs --exchange sptt"),
        ({"placement": "auto", "local": True}, "--local sends nothing between ranks: --placement"),
    ],
)
def test_placements_that_there_are_not(options, sentence):
    with pytest.raises(InputError, match=sentence):
        TrainConfig(**options)


def test_on_ranks_or_in_one_process():
    config = TrainConfig(chunks=3, payload="int8", stochastic=True, tower_payload="bf16", compression=3)
    assert dataclasses.replace(config, **local_options("sptt")) == TrainConfig(
        local=True, payload="int8", stochastic=True, compression=3
    )
    flat = TrainConfig(exchange="flat", chunks=3, payload="int8", stochastic=True)
    assert dataclasses.replace(flat, **local_options("flat")) == TrainConfig(exchange="flat", local=True)


def test_local_towers_need_no_even_shares():
    assert resolve_topology(TrainConfig(local=True, towers=3, batch_size=8), None, None).towers == 3
