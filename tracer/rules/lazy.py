"""The chains of a table and the rules of a chain, each read when it is first asked for.

What belongs here: the two collections of the model that are not there yet. What does not: the model (`model`, from
where they are imported), and reading.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from tracer.rules.model import Chain, Rule


class Rules(Sequence["Rule"]):
    """The rules of a chain, each read when it is first asked for.

    raw: one item for each rule, as `parse` takes it: a line of text, or nft's JSON.
    """

    __slots__ = ("_parse", "_parsed", "raw")

    def __init__(self, raw: list[Any], parse: Callable[[Any], Rule]) -> None:
        self.raw = raw
        self._parse = parse
        self._parsed: dict[int, Rule] | None = None  # none yet for most of 40,000 chains

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, index: int) -> Rule: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Rule, ...]: ...
    def __getitem__(self, index: int | slice) -> Rule | tuple[Rule, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self.raw))))
        if self._parsed is None:
            self._parsed = {}
        rule = self._parsed.get(index)
        if rule is None:
            rule = self._parsed[index] = self._parse(self.raw[index])
        return rule

    def __iter__(self) -> Iterator[Rule]:
        return (self[index] for index in range(len(self.raw)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rules) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self.raw)} rules>"


class LazyChains(Mapping[str, "Chain"]):
    """The chains of a table, each made when it is first asked for.

    names: of all chains, in the kernel's order. text: the words of a chain's rules, for comparison. make: makes the
    chain of such a name. based: names of the base chains.
    """

    __slots__ = ("_made", "_make", "_names", "based", "text")

    def __init__(
        self,
        names: Collection[str],
        text: Callable[[str], str],
        make: Callable[[str], Chain],
        based: tuple[str, ...],
    ) -> None:
        self.text = text
        self.based = based
        self._names = names
        self._make = make
        self._made: dict[str, Chain] = {}

    def __getitem__(self, name: str) -> Chain:
        chain = self._made.get(name)
        if chain is None:
            if name not in self._names:
                raise KeyError(name)
            chain = self._made[name] = self._make(name)
        return chain

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<{len(self._names)} chains>"
