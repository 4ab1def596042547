"""What each method keeps on the full-size language model: counted, and by formula."""

import pytest
import scripts

script = scripts.load("docs/make_reparam.py")
METHODS = {method[0]: method for method in script.METHODS}
COUNTERS = 32  # bytes of step counters, which the formulas leave out


@pytest.mark.parametrize(
    "method",
    [
        m
        if m in ("AdamW", "Fira", "STABLE-RPS")
        else pytest.param(m, marks=pytest.mark.slow)
        for m in METHODS
    ],
)
def test_the_count_is_the_closed_form_and_stands_in_the_page(method):
    _, name, trial, formula = METHODS[method]
    found = script.measured(name, trial)
    trained, state = script.closed_form(name, trial, formula)
    assert found["trainable_parameters"] == trained
    assert 0 <= found["optimizer_state_bytes"] - state <= COUNTERS
    assert script.row(*METHODS[method]) in script.PAGE.read_text()


def test_stored_bytes_of_the_quantised_base():
    """NVFP4: half a byte for each weight, a byte for each 16, 4 for each tensor."""
    _, name, trial, _ = METHODS["LoRA on NVFP4"]
    sizes = script.kernel_sizes(script.point_of(name, trial)["rank"])
    found = script.measured(name, trial)
    base = sizes.kernels // 2 + sizes.kernels // 16 + 4 * sizes.matrices
    assert found["stored_bytes"] == 4 * (sizes.others + sizes.factors) + base
