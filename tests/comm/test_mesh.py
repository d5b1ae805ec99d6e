"""The mesh, dense reductions, and what crosses which link."""

import os

import pytest
import torch

from dmt_kernels.comm import all_reduce_flat, build_mesh, digest_of, traffic
from dmt_kernels.comm import mesh as mesh_module
from dmt_kernels.spec import InputError
from tests.ranks import run_ranks


def _places(rank: int) -> tuple:
    mesh = build_mesh(2, 2, timeout_s=30)
    total = torch.full((3,), float(rank))
    inside = torch.full((2, 2), float(rank))
    traffic.reset()
    all_reduce_flat([total, torch.ones(1)], mesh.dense)
    all_reduce_flat([inside], mesh.tower_dense)
    return (mesh.tower_index, mesh.member_index), total[0].item(), inside[1, 1].item(), traffic.sent_bytes()


def test_groups_are_towers_and_members() -> None:
    results = run_ranks(_places, 4)
    assert [place for place, *_ in results] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [total for _, total, _, _ in results] == [6.0] * 4
    assert [inside for _, _, inside, _ in results] == [1.0, 1.0, 5.0, 5.0]
    # A ring of 4 ranks sends 2 * 3/4 of 16 bytes, one of 2 ranks 2 * 1/2 of 16 bytes.
    assert all(sent == {("dense", "peer"): 24, ("tower_dense", "tower"): 16} for *_, sent in results)


def _named(rank: int) -> list[str]:
    mesh = build_mesh(2, 2, timeout_s=30)
    return [group.group_desc for group in (mesh.ids, mesh.tower, mesh.peer)]


def test_groups_are_called_by_their_stage_and_ranks() -> None:
    assert run_ranks(_named, 4) == [
        ["dmt ids (ranks 0 to 3)", f"dmt tower (ranks {tower})", f"dmt peer (ranks {peers})"]
        for tower, peers in (("0, 1", "0, 2"), ("0, 1", "1, 3"), ("2, 3", "0, 2"), ("2, 3", "1, 3"))
    ]


class _Made(Exception):
    """The first group is about to be."""


@pytest.mark.parametrize(
    ("device", "before", "then"), [("cuda", None, "1"), ("cuda", "0", "0"), ("cpu", None, None)], ids=str
)
def test_communicators_of_a_gpu_keep_their_order(device, before, then, monkeypatch) -> None:
    """Before there are any: NCCL reads it once."""
    name = "NCCL_LAUNCH_ORDER_IMPLICIT"
    monkeypatch.setenv(name, "")  # so that what build_mesh sets is gone at the end
    monkeypatch.delenv(name)
    if before is not None:
        os.environ[name] = before
    for function, result in (("is_initialized", True), ("get_world_size", 1), ("get_rank", 0)):
        monkeypatch.setattr(mesh_module.dist, function, lambda result=result: result)

    def new_group(*_, **__):
        raise _Made(os.environ.get(name))

    monkeypatch.setattr(mesh_module.dist, "new_group", new_group)
    with pytest.raises(_Made) as raised:
        build_mesh(1, 1, device=device)
    assert raised.value.args == (then,)


def _refused(rank: int) -> None:
    with pytest.raises(InputError, match="3 towers of 1 members need 3 ranks, the world has 2"):
        build_mesh(3)
    with pytest.raises(InputError, match="2 towers of 2 members need 4 ranks, the world has 2"):
        build_mesh(2, 2)
    assert build_mesh(timeout_s=30).topology.members == 2, "a tower per host by default"


def test_a_digest_tells_names_and_bits_and_no_order():
    wide = torch.arange(6.0).view(3, 2)
    state = {"a": wide[:, 0], "b": torch.tensor(True), "c": torch.zeros(0), "d": torch.ones(1).expand(3), "e": {}}
    same = {name: state[name] for name in "edcba"} | {"a": wide[:, 0].clone()}
    assert digest_of(state) == digest_of(same)
    for name, other in (("a", wide[:, 1]), ("b", torch.tensor(False)), ("c", torch.zeros(0).double())):
        assert digest_of(state | {name: other}) != digest_of(state)
    assert digest_of({"x": state["a"]}) != digest_of({"y": state["a"]})


def test_a_world_that_does_not_divide_is_refused() -> None:
    run_ranks(_refused, 2)


def test_without_a_process_group_it_says_so() -> None:
    with pytest.raises(InputError, match="init_process_group first"):
        build_mesh(1, 1)
