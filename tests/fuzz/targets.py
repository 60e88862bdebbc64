"""Every decoder of bytes that others make, by name, as a function of bytes that must end in one of few typed errors.

A target is fed whatever bytes there are. It lets pass the errors that its decoder promises, and raises on anything
else: another exception, or a promise about what was decoded that does not hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

from file_targets import (
    feed_home,
    feed_model_file,
    feed_topology_file,
    home_seeds,
    model_file_seeds,
    topology_file_seeds,
)
from message_targets import (
    core_seeds,
    feed_core,
    feed_key_change,
    feed_message,
    feed_offer,
    feed_records,
    key_change_seeds,
    message_seeds,
    offer_seeds,
    record_seeds,
)
from wire_targets import (
    announcement_seeds,
    certificate_seeds,
    feed_announcement,
    feed_certificate,
    feed_header,
    feed_http_head,
    feed_settings,
    feed_status,
    feed_token,
    header_seeds,
    http_head_seeds,
    settings_seeds,
    status_seeds,
    token_seeds,
)


@dataclass(frozen=True)
class Target:
    """One decoder: fed bytes, and valid inputs to begin with. Those of files and of cores take longer a case."""

    name: str
    feed: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


TARGETS = {
    target.name: target
    for target in (
        Target("messages", feed_message, message_seeds),
        Target("offers", feed_offer, offer_seeds),
        Target("records", feed_records, record_seeds),
        Target("key_changes", feed_key_change, key_change_seeds),
        Target("core", feed_core, core_seeds),
        Target("announcements", feed_announcement, announcement_seeds),
        Target("http_heads", feed_http_head, http_head_seeds),
        Target("status", feed_status, status_seeds),
        Target("certificates", feed_certificate, certificate_seeds),
        Target("settings", feed_settings, settings_seeds),
        Target("tokens", feed_token, token_seeds),
        Target("headers", feed_header, header_seeds),
        Target("model_files", feed_model_file, model_file_seeds),
        Target("home_files", feed_home, home_seeds),
        Target("topology_files", feed_topology_file, topology_file_seeds),
    )
}
