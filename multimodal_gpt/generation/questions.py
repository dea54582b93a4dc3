"""What a user asks, as requests: names are checked, words and files become contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.generation.layout import parse_wish
from multimodal_gpt.generation.request import Request, Wishes, settings
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.arrangement import Arrangement, Part
from multimodal_gpt.stream.vocabulary import Vocabulary

VERBS = ("generate", "extend", "fill", "vary")


class Questions:
    """What can be asked of a run: a method for each of its verbs, which `Run` explains."""

    def __init__(
        self, vocabulary: Vocabulary, members: Mapping[str, Member], arrangements: Sequence[Arrangement]
    ) -> None:
        self.vocabulary, self.members, self.arrangements = vocabulary, members, arrangements

    def ask(self, verb: str, asked: Mapping[str, Any]) -> Request:
        """The request of a verb with these arguments. Raises UserError where there is no such verb."""
        if verb not in VERBS:
            raise UserError(f"'{verb}' can't be asked of a run", "verb", nearest(verb, VERBS))
        request: Request = getattr(self, verb)(**asked)
        return request

    def generate(
        self,
        *,
        to: str | Sequence[str],
        bars: int | None = None,
        wishes: Wishes | None = None,
        **options: Any,
    ) -> Request:
        """Something new, from what is given."""
        chosen, given = settings(options)
        wanted = parse_wish(to, self.vocabulary.names)
        both = [name for part in wanted for name in part if name in given]
        if both:
            raise UserError(f"'{both[0]}' is both given and asked for", fix="leave it out of one of them")
        contents, shown = self._contents(given)
        asked, meant = self._wishes(wishes or {}, [name for part in wanted for name in part])
        return Request(wanted, contents, bars=bars, wishes=asked, shown={**shown, **meant}, **chosen)

    def extend(
        self,
        *,
        bars: int | None = None,
        to: str | Sequence[str] | None = None,
        wishes: Wishes | None = None,
        **options: Any,
    ) -> Request:
        """More of what is given."""
        return self._change(to, wishes or {}, options, bars=bars)

    def fill(
        self,
        *,
        bars: tuple[int, int],
        to: str | Sequence[str] | None = None,
        wishes: Wishes | None = None,
        **options: Any,
    ) -> Request:
        """Another middle of what is given."""
        first, last = bars
        if not 1 <= first <= last:
            raise UserError(f"{first}-{last} are no bars", "bars", "first-last, counted from 1")
        return self._change(to, wishes or {}, options, gap=(first - 1, last))

    def vary(
        self,
        *,
        share: float = 0.3,
        to: str | None = None,
        wishes: Wishes | None = None,
        **options: Any,
    ) -> Request:
        """A share of what is given anew."""
        chosen, given = settings(options)
        contents, shown = self._contents(given)
        able = [n for n in contents if "vary" in getattr(self.vocabulary.tokenizer(n), "wishes", ())]
        wanted = self._changed(to or able, tuple(contents))
        varied = [name for part in wanted for name in part]
        asked, meant = self._wishes(wishes or {}, varied)
        for name in varied:
            asked[name] = {**asked.get(name, {}), "vary": contents.pop(name), "share": share}
            meant[f"{name}.vary"] = shown.pop(name)
        return Request(wanted, contents, wishes=asked, shown={**shown, **meant}, **chosen)

    def _change(
        self, to: str | Sequence[str] | None, wishes: Wishes, options: Mapping[str, Any], **how: Any
    ) -> Request:
        chosen, given = settings(options)
        contents, shown = self._contents(given)
        wanted = self._changed(to, tuple(contents))
        begun = {name: contents[name] for part in wanted for name in part}
        others = {name: content for name, content in contents.items() if name not in begun}
        asked, meant = self._wishes(wishes, list(begun))
        return Request(wanted, others, begun, wishes=asked, shown={**shown, **meant}, **how, **chosen)

    def _changed(self, to: str | Sequence[str] | None, given: Part) -> tuple[Part, ...]:
        """The parts to change: what was named, or all that is given and has chunks."""
        if to is not None:
            wanted = parse_wish(to, self.vocabulary.names)
            for name in (name for part in wanted for name in part):
                if name not in given:
                    raise UserError(f"'{name}' is not given", "to", f"give it as {name}=...")
            return wanted
        turning = [name for name in given if self.members[name].turns]
        if not turning:
            raise UserError("nothing is given that has bars", fix="give it, or name it with `to`")
        for arrangement in self.arrangements:
            for part in arrangement.order:
                if set(turning) <= set(part):
                    return (tuple(name for name in part if name in turning),)
        return tuple((name,) for name in turning)

    def _contents(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Contents of what is given, and the words that tell a reader what that was."""
        names = self.vocabulary.names
        for name in given:
            if name not in names:
                raise UserError(f"there is no modality '{name}' in this run", fix=nearest(name, names))
        contents = {name: self.content(name, value) for name, value in given.items()}
        return contents, {name: self._shown(name, given[name], c) for name, c in contents.items()}

    def _wishes(
        self, wishes: Wishes, wanted: Sequence[str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Wishes with contents in place of the words and files that name them, and these words."""
        asked: dict[str, dict[str, Any]] = {}
        shown: dict[str, str] = {}
        for name, values in wishes.items():
            if name not in wanted:
                raise UserError(f"'{name}' is not made, so nothing can be wished of it", "wishes")
            asked[name] = dict(values)
            for key in set(values) & set(self._examples(name)):
                asked[name][key] = self.content(name, values[key])
                shown[f"{name}.{key}"] = self._shown(name, values[key], asked[name][key])
        return asked, shown

    def _examples(self, name: str) -> Sequence[str]:
        return getattr(self.vocabulary.tokenizer(name), "examples", ())

    def content(self, name: str, value: Any) -> Any:
        """Content of one modality from words, a Path or a content object. Raises UserError."""
        tokenizer = self.vocabulary.tokenizer(name)
        try:
            if isinstance(value, str):
                return tokenizer.parse(value)
            if not isinstance(value, Path):
                return value
            if not value.is_file():
                raise UserError("there is no such file", value)
            if value.suffix.lower() not in tokenizer.suffixes:
                raise UserError(f"'{name}' reads {', '.join(tokenizer.suffixes)}", value)
            item = next(iter(tokenizer.read(value)), None)
        except UserError as error:
            raise error.within(name) from error
        if item is None:
            raise UserError(f"the file holds no {name}", value)
        return item.content

    def _shown(self, name: str, value: Any, content: Any) -> str:
        """What was given, as a reader of the side-car may see it."""
        if isinstance(value, str | Path):
            return str(value)
        return self.vocabulary.tokenizer(name).show(self.vocabulary.encode(name, content).ids)
