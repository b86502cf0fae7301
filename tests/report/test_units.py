"""Numbers as readers want them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from equipoise.report.units import minus, seconds, signed, size

SCALES = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def checked(text, value, low):
    number, unit = text.split(" ")
    digits = number.lstrip("-").replace(".", "")
    assert len(digits) <= 3
    found = float(number) * SCALES[unit]
    assert abs(found - value) <= 0.0051 * max(abs(value), low)


@given(
    st.floats(1e-6, 999.4) | st.floats(-999.4, -1e-6) | st.sampled_from([99.97e-6, 9.996, 0.9996, 999.7e-6])
)
def test_times_have_three_digits(value):
    checked(seconds(value), value, 1e-6)


@given(st.integers(0, 10**14) | st.floats(0, 9.99e14) | st.sampled_from([999.7, 999_960, 99_960.0, 9.999e8]))
def test_sizes_have_three_digits(value):
    checked(size(value), value, 1.0)


def test_signs():
    assert (signed(1.5), signed(-1.5), signed(0.0), signed(-0.0)) == ("+1.50 s", "−1.50 s", "0 s", "0 s")
    assert minus("net -3 s, a-1, 2-3") == "net −3 s, a-1, 2-3"
