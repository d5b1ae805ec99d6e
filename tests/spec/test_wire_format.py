"""Wire formats by name, and the bytes of their rows."""

import pytest

from dmt_kernels.spec import InputError, WireFormat


def test_formats_go_by_their_names() -> None:
    assert WireFormat("fp8") is WireFormat.FP8
    assert WireFormat(WireFormat.FP8) is WireFormat.FP8
    with pytest.raises(InputError, match="wire format 'fp4' is unknown; choose one of fp32, bf16, fp16, fp8, int8"):
        WireFormat("fp4")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("fp32", [0, 4, 8, 12, 512]),
        ("bf16", [0, 4, 4, 8, 256]),
        ("fp16", [4, 8, 8, 12, 260]),
        ("fp8", [4, 8, 8, 8, 132]),
        ("int8", [4, 8, 8, 8, 132]),
    ],
)
def test_bytes_of_rows(name: str, sizes: list[int]) -> None:
    """Payloads are padded to 4 bytes; a scale takes 4 more."""
    assert [WireFormat(name).row_bytes(dim) for dim in (0, 1, 2, 3, 128)] == sizes


def test_codes_are_those_of_the_schema() -> None:
    assert [f.code for f in WireFormat] == [0, 1, 2, 3, 4]
    assert [f.value for f in WireFormat] == ["fp32", "bf16", "fp16", "fp8", "int8"]


def test_stochastic_rounding_doubles_every_bound() -> None:
    for wire_format in WireFormat:
        nearest, stochastic = wire_format.error_bound(), wire_format.error_bound(stochastic=True)
        for term in ("of_value", "of_maximum", "least"):
            assert getattr(stochastic, term) == 2 * getattr(nearest, term)
