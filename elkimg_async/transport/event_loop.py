"""The event loop of processes that are ours: the command, and Ray workers.

With the extra `fast` it is asyncio's own loop with aiofastnet's transports, which cost less over
TLS. In a user's process the loop is the user's choice.
"""

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return aiofastnet's factory of event loops, or None if it is not installed."""
    try:
        from aiofastnet import loop_factory as create_factory
    except ImportError:  # not installed, or older than 1.0
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = create_factory()
    return factory
