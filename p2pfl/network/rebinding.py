"""By which names an unencrypted port may be asked: a web page can make a browser ask under the page's own name alone.

Whoever owns a name can let it lead to an address at somebody's home ("DNS rebinding"); the page that was loaded under
that name may then read what this port answers. Addresses, names without a dot and this machine's own are nobody's to
give away.
"""

import socket
from ipaddress import ip_address

_MOST = 255  # characters of a name


def is_of_this_host(host: str | None, own: str | None = None) -> bool:
    """Whether the `Host` of a request is an address or a name that no stranger owns; who sends none is no browser.

    Args:
        own: this machine's name, unless it is to be looked up.
    """
    if host is None:
        return True
    name = host.strip().lower()
    name, _, rest = name[1:].partition("]") if name.startswith("[") else name.partition(":")
    if len(name) > _MOST or (rest and not rest.removeprefix(":").isdecimal()):
        return False
    own = (socket.gethostname() if own is None else own).lower()
    if ("." not in name and ":" not in name) or name in (own, f"{own.partition('.')[0]}.local"):
        return True
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
