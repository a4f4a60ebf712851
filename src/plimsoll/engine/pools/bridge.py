"""Where DistServe's finished prompts wait until a decode instance pulls their KV.

First come, first served. A decode instance looks there after each of its steps, and whenever it is idle. It accepts
while the KV that it has accepted and not begun to decode fills less than a share of its memory and the prompt fits into
its free blocks. Of several, the one with most free blocks.

Machines that end a step at the same instant do so in order of their numbers; a prefill instance counts as -1 here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from plimsoll.engine.pools.decode_instance import DecodeInstance
from plimsoll.engine.pools.disaggregated import Link, Machine
from plimsoll.engine.replicas.replica import INFINITE


class Bridge:
    """Prompts that wait, and who takes them.

    Args:
        decoders: the decode instances.
        due: by machine, when something is next to be done about it.
        link: between prefill and decode instances.
        most_waiting: blocks of accepted KV with which an instance accepts no more.
        until_s: no step begins from then on.

    Attributes:
        line: those who wait: (request, who holds the KV).
    """

    def __init__(
        self, decoders: Sequence[DecodeInstance], due: list[float], link: Link, most_waiting: float, until_s: float
    ) -> None:
        self.line: deque[tuple[int, Machine]] = deque()
        self._decoders, self._due, self._link = decoders, due, link
        self._most_waiting, self._until_s = most_waiting, until_s
        self._requests = decoders[0].requests
        self._block_size = decoders[0].block_size
        self._refused = -1
        self._taken = (0.0, -1)

    # -- who can be told at once -----------------------------------------------------------------------------------

    def serve(self, now_s: float) -> bool:
        """Hand over all that wait, to decode instances left behind; false if somebody still waits after that.

        Whoever is the first to end a step takes a prompt, if it has room and nothing else happens at decode instances
        before. That is done at once, though it may be ahead of now. Else all of them have to keep to the clock.
        """
        for decoder in self._decoders:
            if decoder.now_s < now_s:
                decoder.bring_up(now_s, self._until_s)
        if self._taken[0] < now_s:
            self._taken = now_s, -1
        while self.line:
            if not self._hand_over():
                due = self._due
                for decoder in self._decoders:
                    due[decoder.number] = decoder.now_s if decoder.now_s >= now_s else decoder.next_s()
                self._offer(self._taken[1], self._taken[0])
                return False
        return True

    def _hand_over(self) -> bool:
        """Let the first prompt be taken, no sooner than the one before it, if it can be told by whom."""
        now_s, number = self._taken
        blocks = -(-self._requests.prompt[self.line[0][0]] // self._block_size)
        idle: DecodeInstance | None = None
        first: DecodeInstance | None = None
        most, first_s = blocks - 1, INFINITE
        last, last_s = self._decoders[0], INFINITE  # the first to end its stretch
        for decoder in self._decoders:
            accepts = not decoder.swapped and decoder.waiting_blocks < self._most_waiting
            if not decoder.busy or (decoder.now_s == now_s and decoder.number == number):
                if accepts and decoder.free_blocks > most:
                    idle, most = decoder, decoder.free_blocks
                event_s = now_s if decoder.busy else decoder.next_s()
            else:
                event_s, ends = decoder.now_s, decoder.lane.ends
                step = bisect_left(ends, now_s, decoder.stretch) if accepts else len(ends)
                if step < len(ends) - 1:
                    end_s = ends[step]
                    if end_s in (now_s, first_s):
                        return False  # it depends on their numbers
                    if end_s < first_s and (decoder.free_blocks >= blocks or decoder.free_after(step) >= blocks):
                        first, first_s = decoder, end_s
            if event_s < last_s:
                last, last_s = decoder, event_s
        if idle is not None:
            self._take(idle, now_s)
            self._taken = now_s, number  # it is still the same one's turn
            return True
        if first is not None and first_s < last_s:
            self._take(first, first_s)
            return True
        return now_s < last_s < first_s and self._hand_to_last(last, blocks)

    def _hand_to_last(self, decoder: DecodeInstance, blocks: int) -> bool:
        """The same at the end of a stretch, before which nothing happens elsewhere: its results count already."""
        if not decoder.busy or decoder.attended:
            return False
        decoder.take_results()
        decoder.busy, decoder.stretch = True, len(decoder.lane.ends)
        if decoder.swapped or decoder.waiting_blocks >= self._most_waiting or decoder.free_blocks < blocks:
            return False
        self._take(decoder, decoder.now_s)
        return True

    # -- on the clock ----------------------------------------------------------------------------------------------

    def look(self, number: int, now_s: float) -> None:
        """Instance `number` has ended a step, and of those with steps that end now it is not the first."""
        if self.line and (number >= 0 or self.line[0][0] != self._refused):
            self._offer(number, now_s)

    def _offer(self, number: int, now_s: float) -> None:
        """Who has refused a prompt does so until its next step ends: then only it need be asked again."""
        while self.line:
            request = self.line[0][0]
            blocks = -(-self._requests.prompt[request] // self._block_size)
            if request != self._refused:
                taker = self._ask_all(blocks, number, now_s)
            elif number < 0:
                return
            else:
                taker = self._decoders[number - self._decoders[0].number]
                if self._room_of(taker, now_s) < blocks:
                    return
            if taker is None:
                self._refused = request
                return
            self._take(taker, now_s)

    def _room_of(self, decoder: DecodeInstance, now_s: float) -> int:
        """Free blocks of an instance one of whose steps ends now, if it would accept a prompt; else -1."""
        if decoder.swapped or decoder.waiting_blocks >= self._most_waiting:
            return -1
        return decoder.free_after(decoder.next_end(now_s)) if decoder.busy else decoder.free_blocks

    def _ask_all(self, blocks: int, number: int, now_s: float) -> DecodeInstance | None:
        """Who accepts a prompt of so many blocks; of the others, those who might after a step will look then."""
        taker: DecodeInstance | None = None
        most = blocks - 1
        for decoder in self._decoders:
            if decoder.swapped or decoder.waiting_blocks >= self._most_waiting:
                if decoder.busy:
                    self._due[decoder.number] = decoder.now_s
                continue
            free = decoder.free_blocks
            if decoder.busy:
                self._let_look(decoder, blocks, number, now_s)
                if decoder.number > number or not (decoder.now_s == now_s or decoder.runs_ahead()):
                    continue
                step, ends = decoder.next_end(now_s), decoder.lane.ends
                if step == len(ends) or ends[step] != now_s:  # of one that has just accepted it may be the last
                    continue
                free = decoder.free_after(step)
            if free > most:
                taker, most = decoder, free
        return taker

    def let_look_again(self, decoder: DecodeInstance, now_s: float) -> None:
        """An instance has begun steps while somebody waits: it may look after the first."""
        blocks = -(-self._requests.prompt[self.line[0][0]] // self._block_size)
        self._let_look(decoder, blocks, decoder.number, now_s)

    def _let_look(self, decoder: DecodeInstance, blocks: int, number: int, now_s: float) -> None:
        """If a busy one could take so many blocks after the step under way, and goes on after it, let it look there.

        Later in a stretch it has less room, so if it could not do so then it need not look at all.
        """
        look_s = decoder.now_s
        if not decoder.swapped and decoder.waiting_blocks < self._most_waiting and decoder.runs_ahead():
            step = decoder.next_end(now_s)
            end_s = decoder.lane.ends[step]
            later = end_s > now_s or decoder.number > number
            if later and (decoder.free_blocks >= blocks or decoder.free_after(step) >= blocks):
                look_s = end_s
        self._due[decoder.number] = look_s

    def _take(self, taker: DecodeInstance, now_s: float) -> None:
        """Put the KV of the first prompt on its way."""
        (request, source), due, link = self.line.popleft(), self._due, self._link
        prompt = self._requests.prompt[request]
        blocks = taken = -(-prompt // self._block_size)
        self._taken = now_s, taker.number
        if source.cache is not None:
            source.cache.leaving.append(request)
        if taker.cache is not None:
            prompt, taken = taker.accept(request, now_s)
        begin_s = now_s
        if source.link_free_s > begin_s:
            begin_s = source.link_free_s
        if taker.link_free_s > begin_s:
            begin_s = taker.link_free_s
        source.link_free_s = taker.link_free_s = done_s = begin_s + prompt * link.s_per_token
        there_s = done_s + link.latency_s
        if there_s < self._until_s:
            self._requests.replica[request] = taker.number
        if taker.busy:
            if taker.free_blocks < blocks:
                taker.cut(now_s)  # it cannot go on as it thought
            elif there_s < taker.now_s:
                taker.cut(there_s)
            due[taker.number] = taker.now_s
        elif there_s < due[taker.number]:
            due[taker.number] = there_s
        taker.free_blocks -= taken
        taker.waiting_blocks += blocks
        taker.coming.append((there_s, request))
        if taker.cache is not None:
            taker.cache.expect(request, there_s)
        source.releases.append((there_s, blocks))
        if not source.busy and source.waiting and there_s < due[source.number]:
            due[source.number] = there_s
