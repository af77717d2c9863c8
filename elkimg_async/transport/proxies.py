"""Choice of the proxy for a URL, from the environment's settings."""

import fnmatch
import ipaddress
import re
from urllib.parse import urlsplit

from elkimg_async.config import ProxySettings, proxy_settings
from elkimg_async.errors import ConfigurationError


def proxy_for(url: str, settings: ProxySettings | None = None) -> str | None:
    """Return the URL of the proxy for a request, or None for a direct connection.

    Loopback addresses never go through a proxy.

    Args:
        url: The URL of the request.
        settings: The proxies to choose from. None: those of the environment.

    Raises:
        ConfigurationError: If the proxy that applies is a SOCKS proxy, or its URL is wrong.
    """
    settings = settings or proxy_settings()
    parts = urlsplit(url)
    host = parts.hostname
    if not settings.proxies or not host or _is_loopback(host):
        return None
    # HTTPS_PROXY before ALL_PROXY; an empty variable counts as unset.
    scheme = parts.scheme if settings.proxies.get(parts.scheme) else "all"
    proxy = (settings.proxies.get(scheme) or "").strip()
    if not proxy or settings.bypass(host) or _is_listed(host, _port(url), settings.no_proxy):
        return None
    return _checked(proxy, settings.variable(scheme))


def _checked(proxy: str, variable: str) -> str:
    # curl and requests take a proxy without a scheme as an HTTP proxy.
    if "://" not in proxy:
        proxy = f"http://{proxy.removeprefix('//')}"
    scheme = proxy.partition("://")[0].lower()
    if scheme.startswith("socks"):
        raise ConfigurationError(
            f"{variable} names a SOCKS proxy ({scheme}://), which is not supported directly. "
            "Set it to an HTTP proxy, or use aiohttp-socks: AsyncImages(session="
            "aiohttp.ClientSession(connector=aiohttp_socks.ProxyConnector.from_url(…)))."
        )
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(
            f"The proxy URL in {variable} is not valid; a valid one looks like "
            "http://proxy.example:3128."
        )
    return proxy


def _port(url: str) -> int | None:
    try:
        port = urlsplit(url).port
    except ValueError:
        return None
    return port or {"http": 80, "https": 443}.get(urlsplit(url).scheme)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return _plain(host) == "localhost" if address is None else address.is_loopback


def _is_listed(host: str, port: int | None, no_proxy: str) -> bool:
    return any(_matches(entry, host, port) for entry in re.split(r"[\s,;]+", no_proxy) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Return whether one entry of NO_PROXY names the host, as curl and Go read it.

    An entry is `*`, a host name (which includes its subdomains), `.suffix`, `*.suffix`, an IP
    address, a pattern such as `192.0.2.*`, or a network in CIDR notation, each but the first and
    last with or without `:port`.
    """
    if entry == "*":
        return True
    address = _address(host)
    entry = entry.partition("://")[2] or entry  # https://host
    if "/" in entry:  # 10.0.0.0/8
        network = _network(entry)
        return network is not None and address is not None and address in network
    name, entry_port = _split_port(entry)  # host:port, [::1]:port
    if entry_port is not None and entry_port != port:
        return False
    if "*" in name.removeprefix("*"):  # 192.0.2.*
        return fnmatch.fnmatchcase(_plain(host), _plain(name))
    # An address matches only itself. It must not be compared as text: 1.2.3.4 does not end with the
    # name 3.4, and ::1 can be written in several ways.
    listed = _address(name)
    if listed is not None or address is not None:
        return listed == address
    if name == "*":  # *:443
        return True
    # host, .suffix and *.suffix mean the same: the name itself and its subdomains.
    name, host = _plain(name.removeprefix("*")).lstrip("."), _plain(host)
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d{1,5})", entry)
    return (found[1], int(found[2])) if found else (entry, None)


def _plain(name: str) -> str:
    """Return a name in the form in which it is looked up: lower case, international as ASCII."""
    name = name.lower().rstrip(".")
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    # ::ffff:192.0.2.1 is 192.0.2.1 (RFC 4291, 2.5.5.2).
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None
