"""SGLang's ``PrefillAdder`` the slow way: what a prompt step may still take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.oracle.naive_sglang import Req, Server


class Adder:
    """PrefillAdder."""

    def __init__(self, server: Server) -> None:
        self.server = server
        running = server.running.reqs
        decodes = len(running) if server.mixed else 0
        alive = [req for req in running if not req.finished]
        aside = max(decodes, server.decode_need(alive)) if decodes else 0
        self.memory = server.available() + (server.tree.evictable() if server.cached else 0) - aside
        self.rem_total = self.memory - server.ratio * sum(min(req.to_generate, server.clip) for req in running)
        self.rem_input = server.max_prefill_tokens - decodes
        self.rem_chunk = None if server.chunk_size is None else server.chunk_size - decodes
        self.can_run: list[Req] = []
        self.new_chunked: Req | None = None

    def charge(self, extend: int, max_new: int) -> None:
        paged = self.server.pages(extend) * self.server.page
        self.rem_total -= paged + max_new + self.server.page
        self.rem_input -= paged
        if self.rem_chunk is not None:
            self.rem_chunk -= paged

    def add_chunked(self, req: Req) -> bool:
        assert self.rem_chunk is not None
        most = min(self.rem_chunk, int(self.rem_total))
        if most <= 0:
            most = min(self.rem_chunk, self.memory + -req.in_place % self.server.page)
            self.server.events["chunk beyond its means"] += most > 0
        if most <= 0:
            return False
        req.last = min(len(req.tokens), req.in_place + most)
        complete = req.last == len(req.tokens)
        self.can_run.append(req)
        self.charge(req.last - req.in_place, min(req.max_new, self.server.clip) if complete else 0)
        return True

    def add_one(self, req: Req) -> str:
        server, tokens = self.server, req.tokens
        node, hit = server.tree.match(tokens[:-1]) if server.cached else (None, 0)
        extend = len(tokens) - hit
        total = extend + min(req.to_generate, server.clip) + server.page
        locked = sum(len(step.key) for step in node.path() if not step.locks) if node else 0
        if total >= self.rem_total - locked:
            return "no token"
        paged = server.pages(extend) * server.page
        if self.rem_chunk is None and self.can_run and paged >= self.rem_input:
            return "other"
        whole = self.rem_chunk is None or paged <= self.rem_chunk
        if not whole and self.rem_chunk // server.page * server.page <= 0:
            return "other"
        self.rem_total -= locked
        if node is not None:
            server.lock(req, node)
        if req.first_hit is None:
            req.first_hit = hit
        req.in_place = req.in_tree = hit
        self.can_run.append(req)
        if whole:
            req.last = len(tokens)
            self.charge(extend, min(req.max_new, server.clip))
        else:
            trunc = self.rem_chunk // server.page * server.page
            req.last = hit + trunc
            self.new_chunked = req
            self.charge(trunc, 0)
        if self.rem_total <= 0:
            return "no token"
        if self.rem_input <= 0 or (self.rem_chunk is not None and self.rem_chunk <= 0):
            return "other"
        return "continue"
