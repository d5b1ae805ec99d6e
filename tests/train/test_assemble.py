"""What the over-arch becomes behind towers, and what is said where ranks are not found."""

import dataclasses
import json

import pytest

from dmt_kernels.spec import ExchangeError
from dmt_kernels.train.assemble import build_model, connect, set_up
from dmt_kernels.train.config import TrainConfig, resolve_topology


def model_of(model, **options):
    config = TrainConfig(
        data="synthetic:64", model=model, embedding_dim=8, local=True, towers=2, device="cpu", **options
    )
    return build_model(set_up(resolve_topology(config, None, None)), None)


def widths(model):
    """Columns that each layer of the over-arch takes and gives, less the interaction of a DLRM and its successor."""
    return [
        m.weight.shape
        for name, m in model.named_modules()
        if name.startswith(("bottom", "cross")) and not any(m.children())
    ]


@pytest.mark.parametrize("model", ["dlrm", "dcn"])
@pytest.mark.parametrize("compression", [2, 3, 8])
def test_the_over_arch_behind_towers_is_as_wide_as_the_flat_one(model, compression):
    towers = {"tower_module": model, "compression": compression}
    flat, wide = model_of(model, exchange="flat"), model_of(model, **towers)
    narrow = model_of(model, **towers, over_arch_width="towers")
    assert wide.exchange.realised_compression >= compression
    last = [widths(m)[-1][0] for m in (flat, wide, narrow)]
    assert last[2] < last[0] == last[1]
    assert len(widths(flat)) == len(widths(wide)) == len(widths(narrow))


@pytest.mark.parametrize("model", ["dlrm", "dcn"])
@pytest.mark.parametrize(
    "options", [{}, {"tower_module": "dlrm", "compression": 1}, {"over_arch_width": "towers"}], ids=str
)
def test_where_nothing_is_compressed_the_over_arch_is_the_flat_one(model, options):
    flat, towers = model_of(model, exchange="flat"), model_of(model, **options)
    shapes = [{n: p.shape for n, p in m.named_parameters() if not n.startswith("exchange.")} for m in (flat, towers)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("dim", "mapped"), [(8, 8), (16, 16), (32, 16)])
def test_a_dlrm_maps_features_back_to_dot_products_of_sixteen_columns_at_most(dim, mapped):
    config = TrainConfig("synthetic:64", local=True, towers=2, members=1, tower_module="dlrm", embedding_dim=dim)
    model = build_model(set_up(config), None)
    assert model.out_dim == mapped
    assert model.expand.weight.shape == (26 * mapped, 26 * dim // 2)
    narrow = build_model(set_up(dataclasses.replace(config, over_arch_width="towers")), None)
    assert narrow.out_dim == dim // 2 and not list(narrow.expand.parameters())


def test_features_of_unequal_tables_are_mapped_back_to_the_widest(tmp_path):
    tables = [{"name": f"t{i}", "rows": 9000, "dim": (4, 8)[i % 2], "features": [f"f{i:02}"]} for i in range(26)]
    (tmp_path / "tables.json").write_text(json.dumps({"tables": tables}))
    config = TrainConfig("synthetic:64", local=True, towers=2, members=1, tower_module="dlrm")
    model = build_model(set_up(dataclasses.replace(config, tables=str(tmp_path / "tables.json"))), None)
    assert model.out_dim == 8
    assert model.expand.weight.shape == (26 * 8, 26 * 6 // 2)


@pytest.mark.parametrize("model", ["dlrm", "dcn"])
def test_the_least_compression_has_a_map(model):
    tower = model_of(model, tower_module=model, compression=1.01)
    assert sum(tower.exchange.out_widths) == 2 * (13 * 8 * 100 // 101) == tower.expand.weight.shape[1]


def test_towers_of_a_narrow_dcn_have_any_width():
    tower = model_of("dcn", tower_module="dlrm", compression=3, over_arch_width="towers")
    assert tower.exchange.out_widths == [34, 34]  # of 104 columns, and no multiple of 4
    assert model_of("dcn", tower_module="dcn", compression=0.9).exchange.out_widths == [115, 115]


@pytest.mark.parametrize("where", ["torch.distributed.init_process_group", "dmt_kernels.train.assemble.build_mesh"])
@pytest.mark.parametrize(
    ("restarts", "shared", "hints"), [("1", "True", True), ("0", "True", False), ("1", "False", False)]
)
def test_restarted_ranks_that_are_not_found_are_told_of_the_store(restarts, shared, hints, where, monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("timed out connecting")

    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(where, lost)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    with pytest.raises(ExchangeError if hints else RuntimeError, match="timed out connecting") as caught:
        connect(TrainConfig("synthetic:64", towers=2, members=1, device="cpu"))
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(caught.value)) == hints
