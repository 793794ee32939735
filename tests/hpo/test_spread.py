"""How trials are spread over the hosts of a node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpo.cluster.spread import Spread


def test_each_trial_takes_the_emptiest_host() -> None:
    spread = Spread(2)
    assert [spread.take(name) for name in "abc"] == [0, 1, 0]
    spread.free("a")
    spread.free("c")
    assert spread.take("d") == 0
    assert len(spread) == 2


def test_one_moves_only_where_it_has_fewer_beside_it() -> None:
    spread = Spread(2)
    for name in "abcd":
        spread.take(name)
    spread.free("b")
    assert not spread.is_crowded("a"), "two and one: one and two would be no better"
    spread.free("d")
    assert spread.is_crowded("a")
    assert spread.is_crowded("c")
    spread.free("a")
    assert spread.take("a") == 1
    assert not spread.is_crowded("c")
    assert not spread.is_crowded("gone")


@given(st.integers(1, 4), st.lists(st.integers(0, 9), max_size=40))
def test_moving_the_crowded_ends_and_leaves_the_hosts_even(hosts: int, names: list[int]) -> None:
    spread = Spread(hosts)
    present: dict[str, int] = {}
    for number in names:  # comes, or goes if it is there
        name = str(number)
        if present.pop(name, None) is None:
            present[name] = spread.take(name)
        else:
            spread.free(name)
    for _ in range(len(present) + 1):
        for name in present:
            if spread.is_crowded(name):
                spread.free(name)
                present[name] = spread.take(name)
    counts = [list(present.values()).count(host) for host in range(hosts)]
    assert max(counts) - min(counts) <= 1
