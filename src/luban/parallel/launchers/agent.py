"""torchrun, with two things that schedulers ask for: it ends with status 75 where the run is to be continued, and SIGUSR1 reaches the ranks as SIGTERM does.
And it knows its own address, where the machines meet there, on machines whose name stands for another one of theirs.

``python -m luban.parallel.launchers.agent …`` takes torchrun's own arguments.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, parse_args, run

from luban.foundation.errors import Interrupted

ADDED = {"--signals-to-handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout": "120"}  # seconds to save in; whoever asked them to leave ends them sooner


def main(arguments: list[str]) -> int:
    """Run the ranks of this machine to their end; returns the exit status."""
    known = {spelling for action in get_args_parser()._actions for spelling in action.option_strings}  # an older torch lacks the second
    added = [word for option, value in ADDED.items() if option in known for word in (option, value)]
    given = parse_args([*added, *arguments])
    meeting = given.rdzv_endpoint.rpartition(":")[0]
    if own := address_towards(meeting):  # else ranks elsewhere would look for a name, which may stand for another address, or for none
        given.local_addr = given.local_addr or own
        given.rdzv_conf = given.rdzv_conf or f"is_host={int(own == meeting.strip('[]'))}"
    try:
        run(given)
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        print(error, file=sys.stderr)
        return Interrupted.exit_code if Interrupted.exit_code in statuses else 1
    except SignalException:
        return Interrupted.exit_code
    return 0


def address_towards(host: str) -> str:
    """This machine's address on the way to another, or to itself, that is given in numbers; "" for names, of which torchrun finds out itself, and loopback. Nothing is sent."""
    with contextlib.suppress(ValueError, OSError):
        address = ipaddress.ip_address(host.strip("[]"))
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return "" if address.is_loopback else probe.getsockname()[0]
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
