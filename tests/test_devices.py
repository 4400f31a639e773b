"""The device: found by name or refused in one line; its arithmetic set and put back."""

import pytest
import torch

from spectra.devices import arithmetic, device_name, find_device
from spectra.errors import SpectraError

BACKENDS = torch.backends


def settings() -> tuple[object, ...]:
    conv, matmul = BACKENDS.cudnn.conv, BACKENDS.cuda.matmul
    return conv.fp32_precision, matmul.fp32_precision, BACKENDS.cudnn.deterministic


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "cuda:99", "nonsense", "", "cuda:x", "mps:7", "hpu"])
def test_a_device_that_can_hold_no_value_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SpectraError, match=r"got the device .* use --device cpu or auto") as caught:
        find_device(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_device_is_named_for_the_reader(device: torch.device) -> None:
    threads = f", {torch.get_num_threads()} threads)"
    cuda = device.type == "cuda"
    assert device_name(device).endswith(torch.cuda.get_device_name(device) if cuda else threads)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_arithmetic_is_set_on_cuda_and_put_back(precision: str, deterministic: bool) -> None:
    """The flags are there without a GPU, too."""
    before = settings()
    with arithmetic(torch.device("cuda"), precision=precision, deterministic=deterministic):
        assert settings() == (precision, precision, deterministic)
    assert settings() == before
    with arithmetic(torch.device("cpu"), precision=precision, deterministic=not before[-1]):
        assert settings() == before
