"""
The echo contract, rule by rule.
"""

from collections.abc import Awaitable, Callable

from kvserver.check import contract, seen
from kvserver.check.path import FAILS, OK, UNKNOWN, CannotBeTold, Check, Fails, Path

RULES: dict[str, Callable[[Path], Awaitable[str]]] = {
    "lines": contract.lines,
    "early": contract.early,
    "half-close": contract.halfClose,
    "tail": contract.tail,
    "long-1mb": contract.long(1_000_000),
    "long-50mb": contract.long(50_000_000),
    "bytes": contract.allBytes,
    "urgent": contract.urgent,
    "slow-reader": contract.slowReader,
    "one-byte": contract.oneByte,
    "connections": contract.manyConnections,
    "reset": seen.reset,
    "idle": contract.idle,
    "client-address": seen.clientAddress,
}


async def tryRules(path: Path, names: list[str], tell: Callable[[Check], None]) -> list[Check]:
    """
    Try rules, one after the other.

    @param tell: Called with what became of each.
    """
    checks: list[Check] = []
    areLinesBroken = False
    for name in names:
        if path.run.interrupted:
            check = Check(name, UNKNOWN, "not tried: the run was interrupted")
        elif areLinesBroken:
            check = Check(name, UNKNOWN, "not tried, since whole lines do not come back")
        else:
            check = await tryRule(path, name)
        if path.run.isInVain:
            break
        checks.append(check)
        tell(check)
        areLinesBroken = areLinesBroken or (name == "lines" and check.outcome == FAILS)
    return checks


async def tryRule(path: Path, name: str) -> Check:
    """
    Try one rule.
    """
    try:
        check = Check(name, OK, await RULES[name](path))
    except Fails as failure:
        check = Check(name, FAILS, str(failure))
    except CannotBeTold as reason:
        check = Check(name, UNKNOWN, str(reason))
    finally:
        path.leave()
    if path.run.interrupted and check.outcome != OK:
        return Check(name, UNKNOWN, "the run was interrupted")
    return check
