"""The protocol of companions, checked exhaustively: every interleaving, crash and false death (docs/decisions/0017).

One raw segment X goes through prep and inference. Two owners each believe that they own X's partition: any may freeze
at any step (it is then just not scheduled) and wake up after a take-over. Two inference workers compete for X; one
recoverer may call any attempt dead at any moment, rightly or not, and collects companions that were left over; a
checkpoint removes raw X; a segment may be set aside, by anyone who holds it; a reset may come at any moment. Every step
is one system call on a coherent, durable file system, and any process may die before any step.

Held in every reachable state, unless a reset came: features of X that wait or are claimed have their companion, so
whoever really holds X finds it; X is passed on once and its results are published once. Held in every state from which
nothing more can happen: no companion is left in ``rows/``, reset or not, and a dead X has its own beside it.

Left out, for the tests of the real code: lost replies, power loss, several segments of one commit.

    python -m tests.models.companion    the protocol, then tempting variants and the trace that breaks each
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple, TypeVar

Variant = Literal[
    "protocol",
    "features first",
    "companion goes before the commit",
    "companion goes when listings lack X",
    "buried before the claim is",
]
TEMPTING: Final[tuple[Variant, ...]] = (
    "features first",
    "companion goes before the commit",
    "companion goes when listings lack X",
    "buried before the claim is",
)
STEPS: Final = 2  # X is step 1; step 2 takes nothing, it makes 1 an old step whose left-overs are garbage


class Scope(NamedTuple):
    """How much may happen in one search: attempts of prep, claims of X, crashes of any process, and a reset."""

    prep_attempts: int = 2
    claims: int = 2
    crashes: int = 0
    reset: bool = False


SCOPES: Final = (
    Scope(),
    Scope(prep_attempts=3, claims=1),
    Scope(claims=1, crashes=1),
    Scope(prep_attempts=1, crashes=1),
    Scope(claims=1, reset=True),
    Scope(prep_attempts=1, reset=True),
)
LARGE_SCOPES: Final = (Scope(crashes=1), Scope(reset=True), Scope(prep_attempts=1, claims=3, crashes=2))  # minutes


class Owner(NamedTuple):
    """An owner of the partition: where it is, the step it is about, its attempt, and the attempts it calls garbage."""

    at: str = "idle"
    step: int = 0
    attempt: int = -1
    garbage: tuple[tuple[str, int], ...] = ()


class Worker(NamedTuple):
    """An inference worker, or the recoverer: where it is, and the claim it is about."""

    at: str = "idle"
    attempt: int = -1


class State(NamedTuple):
    raw: bool  # raw-transactions/ready/X
    commits: tuple[int | None, ...]  # step -> the attempt that its commit names, None if there is no such file
    staged_rows: tuple[bool, ...]  # by prep's attempt: staged/a/X.rows
    staged_features: tuple[bool, ...]  # staged/a/X.arrow
    prep_attempts: int
    owners: tuple[Owner, Owner]
    rows: bool  # features-ready/rows/X
    passed_on: int  # times that features X were published
    x: str  # where features X are: "", "ready", "claimed", "committed", "gone", "dead"
    holder: int  # the attempt of a claim or commit
    claims: int
    staged_results: tuple[bool, ...]  # by inference's attempt
    results: int  # times that results X were published
    buried: bool  # dead/X.rows
    workers: tuple[Worker, Worker]
    recoverer: Worker
    reset: bool
    crashes: int
    wrong: str


def start(scope: Scope) -> State:
    """X was published by its producer, nothing else has happened."""
    none_staged = (False,) * scope.prep_attempts
    return State(
        True, (-1, None, None), none_staged, none_staged, 0, (Owner(), Owner()), False, 0, "", -1, 0,
        (False,) * scope.claims, 0, False, (Worker(), Worker()), Worker(), False, scope.crashes, "",
    )  # fmt: skip


def twin(s: State) -> State:
    """The state that stands for ``s`` and for those in which the two owners, or the two workers, change places."""
    return s._replace(owners=tuple(sorted(s.owners)), workers=tuple(sorted(s.workers)))  # type: ignore[arg-type]


Moves = Iterator[tuple[str, State]]
T = TypeVar("T")


def put(values: tuple[T, ...], i: int, value: T) -> tuple[T, ...]:
    """A tuple with one element changed."""
    return (*values[:i], value, *values[i + 1 :])


# prep


def publish_rows(s: State, attempt: int) -> State:
    """Rename staged/attempt/X.rows to rows/X; what is not there was published before."""
    if not s.staged_rows[attempt]:
        return s
    return s._replace(staged_rows=put(s.staged_rows, attempt, False), rows=True)


def publish_features(s: State, attempt: int) -> State:
    if not s.staged_features[attempt]:
        return s
    staged = put(s.staged_features, attempt, False)
    return s._replace(staged_features=staged, x="ready", passed_on=s.passed_on + 1)


def unstage(s: State, kind: str, attempt: int) -> State:
    if kind == "rows":
        return s._replace(staged_rows=put(s.staged_rows, attempt, False))
    return s._replace(staged_features=put(s.staged_features, attempt, False))


def newest(s: State) -> int:
    return max(step for step, attempt in enumerate(s.commits) if attempt is not None)


def others_staged(s: State, own: int) -> tuple[tuple[str, int], ...]:
    kinds = {"rows": s.staged_rows, "features": s.staged_features}
    return tuple(
        (kind, a) for kind, there in kinds.items() for a, is_there in enumerate(there) if is_there and a != own
    )


def owner_moves(s: State, i: int, variant: Variant) -> Moves:
    o = s.owners[i]

    def to(owner: Owner, base: State = s) -> State:
        return base._replace(owners=(owner, base.owners[1]) if i == 0 else (base.owners[0], owner))

    publish = (publish_features, publish_rows) if variant == "features first" else (publish_rows, publish_features)
    match o.at:
        case "idle":
            step = newest(s)
            named = s.commits[step]
            yield (
                f"owner {i} reads newest commit {step}",
                to(Owner("finish" if step == 1 else "ready", step, named or 0)),
            )
        case "finish" | "finish 2":
            first = o.at == "finish"
            after = publish[0 if first else 1](s, o.attempt)
            yield (
                f"owner {i} {publish[0 if first else 1].__name__} of {o.attempt}",
                to(
                    o._replace(at="finish 2")
                    if first
                    else Owner("clean" if o.garbage else "ready", 1, o.attempt, o.garbage),
                    after,
                ),
            )
        case "ready":
            if o.step and (s.raw or s.commits[: o.step] != (None,) * o.step):
                commits = (None,) * o.step + s.commits[o.step :]
                yield f"owner {i} writes a checkpoint, removes raw X", to(o, s._replace(raw=False, commits=commits))
            if o.step < STEPS and s.prep_attempts < len(s.staged_rows):
                new = Owner("link", o.step + 1, s.prep_attempts)
                base = s._replace(prep_attempts=s.prep_attempts + 1)
                if o.step:
                    yield f"owner {i} stages step 2 as {new.attempt}", to(new, base)
                elif s.raw:
                    staged = put(s.staged_rows, new.attempt, True)
                    yield (
                        f"owner {i} links raw X as staged/{new.attempt}/X.rows",
                        to(new._replace(at="stage"), base._replace(staged_rows=staged)),
                    )
                else:
                    yield f"owner {i} finds raw X gone: not its partition any more", to(Owner())
        case "stage":
            staged = put(s.staged_features, o.attempt, True)
            yield f"owner {i} stages features", to(o._replace(at="link"), s._replace(staged_features=staged))
        case "link":
            yield from list_garbage(s, o, i, to)
            if s.commits[o.step] is None:
                commits = put(s.commits, o.step, o.attempt)
                yield f"owner {i} LINKS commit {o.step}", to(o._replace(at="look"), s._replace(commits=commits))
            else:
                yield f"owner {i} gets EEXIST for {o.step}", to(o._replace(at="lose"))
        case "look":
            if newest(s) > o.step:
                yield f"owner {i} sees a newer commit than {o.step}", to(o._replace(at="lose"))
            elif o.step == 1:
                yield f"owner {i} sees that 1 is newest", to(o._replace(at="finish"))
            else:
                yield f"owner {i} sees that 2 is newest", to(o._replace(at="clean" if o.garbage else "ready"))
        case "lose":
            yield f"owner {i} drops staged companion", to(o._replace(at="lose 2"), unstage(s, "rows", o.attempt))
        case "lose 2":
            yield f"owner {i} drops staged features", to(Owner(), unstage(s, "features", o.attempt))
        case "clean":
            (kind, attempt), *left = o.garbage
            then = o._replace(garbage=tuple(left)) if left else Owner("ready", o.step, o.attempt)
            yield f"owner {i} removes staged {kind} of {attempt}", to(then, unstage(s, kind, attempt))
    if o.at != "idle" and s.crashes:
        yield f"owner {i} dies, a fresh one starts", to(Owner(), s._replace(crashes=s.crashes - 1))


def list_garbage(s: State, o: Owner, i: int, to: Callable[[Owner], State]) -> Moves:
    """What others staged is noted before the link, and removed after it if the step is still the newest."""
    garbage = others_staged(s, o.attempt)
    if garbage and not o.garbage:
        yield f"owner {i} lists what others staged", to(o._replace(garbage=garbage))


# inference


def publish_results(s: State, attempt: int) -> State:
    if not s.staged_results[attempt]:
        return s
    return s._replace(staged_results=put(s.staged_results, attempt, False), results=s.results + 1)


def holds(s: State, attempt: int) -> bool:
    return s.x == "claimed" and s.holder == attempt


def bury(s: State) -> State:
    return s._replace(rows=False, buried=True) if s.rows else s


def worker_moves(s: State, i: int, variant: Variant) -> Moves:
    w = s.workers[i]
    early = variant == "companion goes before the commit"

    def to(at: str, base: State = s) -> State:
        new = Worker() if at == "idle" else w._replace(at=at)
        return base._replace(workers=(new, base.workers[1]) if i == 0 else (base.workers[0], new))

    match w.at:
        case "idle":
            if s.x == "ready" and s.claims < len(s.staged_results):
                claimed = s._replace(x="claimed", holder=s.claims, claims=s.claims + 1)
                new = Worker("open", s.claims)
                yield (
                    f"worker {i} claims X as {s.claims}",
                    claimed._replace(workers=(new, s.workers[1]) if i == 0 else (s.workers[0], new)),
                )
        case "open":
            yield f"worker {i} opens features X", to("read" if holds(s, w.attempt) else "idle")
        case "read":
            if s.rows:
                yield f"worker {i} maps the companion", to("stage")
                yield f"worker {i} maps the companion and can't use it, the third time", to("bury")
            else:
                yield f"worker {i} finds no companion", to("doubt")
        case "doubt":
            wrong = "" if s.reset or not holds(s, w.attempt) else "a worker that holds X finds no companion"
            yield f"worker {i} looks whether X is still its own", to("idle", s._replace(wrong=s.wrong or wrong))
        case "stage":
            staged = put(s.staged_results, w.attempt, True)
            yield f"worker {i} stages results", to("drop" if early else "commit", s._replace(staged_results=staged))
        case "commit":
            if holds(s, w.attempt):
                yield f"worker {i} COMMITS {w.attempt}", to("publish", s._replace(x="committed"))
            else:
                dropped = put(s.staged_results, w.attempt, False)
                yield f"worker {i} finds its claim taken, drops results", to("idle", s._replace(staged_results=dropped))
        case "publish":
            yield f"worker {i} publishes results", to("forget" if early else "drop", publish_results(s, w.attempt))
        case "drop":
            yield f"worker {i} removes the companion", to("commit" if early else "forget", s._replace(rows=False))
        case "forget":
            yield f"worker {i} removes the commit", to("idle", forget(s, w.attempt))
        case "bury" if variant == "buried before the claim is":
            yield f"worker {i} puts the companion into dead/", to("bury claim", bury(s))
        case "bury claim":
            yield f"worker {i} puts X into dead/", to("idle", s._replace(x="dead") if holds(s, w.attempt) else s)
        case "bury":
            if holds(s, w.attempt):
                yield f"worker {i} puts X into dead/", to("bury rows", s._replace(x="dead"))
            else:
                yield f"worker {i} finds its claim taken", to("bury rows" if s.x == "dead" else "idle")
        case "bury rows":
            yield f"worker {i} puts the companion beside it", to("idle", bury(s))
    if w.at != "idle" and s.crashes:
        yield f"worker {i} dies, a fresh one starts", to("idle", s._replace(crashes=s.crashes - 1))


def forget(s: State, attempt: int) -> State:
    return s._replace(x="gone") if s.x == "committed" and s.holder == attempt else s


def recoverer_moves(s: State, variant: Variant) -> Moves:
    r = s.recoverer

    def to(at: str, base: State = s) -> State:
        return base._replace(recoverer=Worker() if at == "idle" else r._replace(at=at))

    match r.at:
        case "idle":
            if s.x == "claimed":
                yield f"recoverer calls attempt {s.holder} dead, takes X back", s._replace(x="ready")
            if s.x == "committed":
                yield "recoverer sees the commit", s._replace(recoverer=Worker("publish", s.holder))
            if s.rows:
                yield from collector_starts(s, to, variant)
        case "publish":
            yield "recoverer publishes results", to("drop", publish_results(s, r.attempt))
        case "drop":
            yield "recoverer removes the companion", to("forget", s._replace(rows=False))
        case "forget":
            yield "recoverer removes the commit", to("idle", forget(s, r.attempt))
        case "look in ready":
            yield "collector looks for X in ready/", to("idle" if s.x == "ready" else "remove")
        case "remove":
            yield "collector removes the companion", to("idle", s._replace(rows=False))
        case "bury":
            yield "collector puts the companion beside dead X", to("idle", bury(s))
    if r.at != "idle" and s.crashes:
        yield "recoverer dies, a fresh one starts", to("idle", s._replace(crashes=s.crashes - 1))


def collector_starts(s: State, to: Callable[[str], State], variant: Variant) -> Moves:
    if variant == "companion goes when listings lack X":
        if s.x != "claimed":
            yield "collector finds X in no claim", to("look in ready")
    elif s.results:
        yield "collector sees results of X", to("remove")
    elif s.x == "dead":
        yield "collector sees X in dead/", to("bury")


def reset_moves(s: State) -> Moves:
    """A new epoch; from then on whoever recovers removes what is X's wherever it is listed, one file at a time."""
    if not s.reset:
        yield "RESET", s._replace(reset=True)
        return
    if s.rows:
        yield "a later epoch removes the companion", s._replace(rows=False)
    if s.x in {"ready", "claimed", "committed"}:
        yield "a later epoch removes features X", s._replace(x="gone")


def moves(s: State, variant: Variant, scope: Scope) -> Moves:
    """Every step that any process may do next."""
    for i in (0, 1):
        yield from owner_moves(s, i, variant)
        yield from worker_moves(s, i, variant)
    yield from recoverer_moves(s, variant)
    if scope.reset:
        yield from reset_moves(s)


def wrong(s: State) -> str:
    """What is wrong in a state, or nothing."""
    if s.wrong:
        return s.wrong
    if s.passed_on > 1:
        return "features published twice"
    if s.results > 1:
        return "results published twice"
    if not s.reset and s.x in {"ready", "claimed"} and not s.rows:
        return f"features that are {s.x} have no companion"
    return ""


def wrong_at_the_end(s: State) -> str:
    """What is wrong in a state from which nothing more can happen but a reset."""
    if s.rows and s.x != "ready":  # out of claims is the model's end, not the protocol's
        return "a companion is left for ever"
    if s.reset:
        return ""
    if s.x == "dead" and not s.buried:
        return "a dead segment lies without its companion"
    if s.x in {"claimed", "committed"} or (s.x == "gone" and s.results != 1):
        return "lost"
    return ""


class Verdict(NamedTuple):
    """States seen, what is wrong ("" if nothing), and the shortest trace to it."""

    states: int
    problem: str
    trace: list[str]


def check(variant: Variant, scope: Scope) -> Verdict:
    """Breadth first over all reachable states of a variant."""
    first = start(scope)
    came: dict[State, tuple[State, str] | None] = {twin(first): None}
    todo = deque([first])
    while todo:
        s = todo.popleft()
        problem, over = wrong(s), True
        for label, after in moves(s, variant, scope):
            over = over and (label == "RESET" or after == s)
            if (key := twin(after)) not in came:
                came[key] = (s, label)
                todo.append(after)
        problem = problem or (wrong_at_the_end(s) if over else "")
        if problem:
            return Verdict(len(came), problem, _trace(came, s))
    return Verdict(len(came), "", [])


def _trace(came: dict[State, tuple[State, str] | None], s: State) -> list[str]:
    trace: list[str] = []
    while (step := came[twin(s)]) is not None:
        s, label = step
        trace.append(label)
    return trace[::-1]


def main() -> int:
    """Print the protocol's verdicts and the trace that breaks each variant; 0 if all is as it should be."""
    failed = False
    for scope in SCOPES + LARGE_SCOPES:
        verdict = check("protocol", scope)
        failed |= bool(verdict.problem)
        print(f"protocol, {scope}: {verdict.states} states, {verdict.problem or 'sound in all of them'}", flush=True)
    for variant in TEMPTING:
        verdict = check(variant, Scope())
        failed |= not verdict.problem
        print(f"{variant}: {verdict.problem or 'sound'}\n", *(f"    {line}\n" for line in verdict.trace), sep="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
