"""What a failed attempt uses up, and whether anybody may be asked after it: pure.

The walk does it, `gateway explain --cause` foretells it. Source: gateway.md 2.1.
"""

from gateway.core.plan import Facts
from gateway.core.target import WAY_ON, Cause, Chain, Fault, Next, Target
from gateway.pipeline.plan import Spent
from gateway.wire import json


def onward(facts: Facts, spent: Spent, target: Target, cause: Cause) -> Spent | None:
    """What is spent once `target` has failed with `cause`; None: the walk ends here.

    The target is done; unless its key was at fault, so are its other keys. A chain in `on` is
    gone on with from its start.
    """
    way, chain = WAY_ON[cause], spent.chain or facts.chain
    gone = {target.id}
    if way.fault not in {Fault.KEY, Fault.THROTTLE}:
        gone |= {other.id for other in chain.targets if other.name == target.name}
    spent = json.changed(spent, tried=spent.tried | gone)
    said = chain.on.get(cause)
    if way.next is Next.NEVER or said == "stop":
        return None
    if isinstance(said, Chain):
        return json.changed(spent, chain=said)
    if said == "next":
        return spent
    if way.next is Next.LARGER:
        return None if target.context is None else json.changed(spent, larger_than=target.context)
    return spent if way.next is Next.YES else None
