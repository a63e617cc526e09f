"""The certificates of a daemon: in use once their files have changed, and watched for their end.

A file that cannot be used leaves in use what was good before; that is logged and counted, as are
renewals. `Certificates.collect` tells how long each certificate has left; in the last `WARN_DAYS`
of its life, or the last third of a shorter one, the log tells once a day.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from smallstack.identity.certificate import Certificate
from smallstack.identity.credentials import ClientCredentials, Pair, ServerCredentials, span
from smallstack.identity.renewal import Renewable
from smallstack.telemetry.metrics import PREFIX, Metrics

WARN_DAYS: Final = 30
DAY: Final = 86400
INTERVAL: Final = 3600.0
"""Seconds between two looks at the files when nobody connects."""
_log = logging.getLogger("smallstack.daemon")


class Certificates:
    """``server`` is for an `smallstack.srpc.server.Server`, ``client`` for calling others."""

    def __init__(
        self,
        pair: Pair,
        authority: Path,
        identity_authority: Path | None,
        metrics: Metrics,
        *,
        identity_optional: bool = False,
    ) -> None:
        """``identity_optional``: there need not be such a file, or not all the time.

        Raises CertificateError.
        """
        self._files = pair, authority, identity_authority, identity_optional
        self._renewals = metrics.counter(
            "certificate_renewals",
            "Times that changed certificates, keys or authorities came into use, or could not.",
            ["outcome"],
        )
        for outcome in ("used", "failed"):
            self._renewals.labels(outcome)
        places = [*pair, authority, *([identity_authority] if identity_authority else [])]
        self.server = Renewable(self._make_server, places, self._count)
        self.client = Renewable(lambda: ClientCredentials(pair), pair)
        self._warned: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None
        self.server.renew()
        metrics.registry.register(self)

    def start(self) -> None:
        """Look at the files now and then, and warn."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Do so no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def renew(self) -> None:
        """Read the files again, changed or not; raises what keeps them from being used."""
        self.server.renew()

    def _make_server(self) -> ServerCredentials:
        pair, authority, identity, optional = self._files
        if identity is not None and optional and not identity.exists():
            identity = None
        return ServerCredentials(pair, authority, identity)

    def _count(self, used: bool) -> None:
        self._renewals.labels("used" if used else "failed").inc()

    async def _watch(self) -> None:
        while True:
            await self.server.fresh()
            self.warn()
            await asyncio.sleep(INTERVAL)

    def warn(self) -> None:
        """Tell of certificates that end soon, or have ended, unless that was told today."""
        now = time.time()
        for (file, name), one in self._known().items():
            if not ends_soon(one, now) or now - self._warned.get((file, name), -DAY) < DAY:
                continue
            self._warned[file, name] = now
            left = one.not_after - now
            what = f"ends in {span(left)}" if left > 0 else f"ended {span(-left)} ago"
            _log.warning("the certificate of %r in %s %s: renew it", name, file, what)

    def _known(self) -> dict[tuple[str, str], Certificate]:
        """By file and name; of an authority that was renewed under its name, what lasts longer."""
        known: dict[tuple[str, str], Certificate] = {}
        for place, one in self.server.current.certificates:
            key = (str(place), one.common_name)
            if key not in known or known[key].not_after < one.not_after:
                known[key] = one
        return known

    def collect(self) -> Iterator[Metric]:
        """What a scrape gets; in a thread."""
        now = time.time()
        known = self._known()
        left = GaugeMetricFamily(
            f"{PREFIX}_certificate_left_seconds",
            "How long a certificate has left: the daemon's own, and those of authorities.",
            labels=["file", "name"],
        )
        for labels, one in known.items():
            left.add_metric(labels, one.not_after - now)
        yield left
        yield GaugeMetricFamily(
            f"{PREFIX}_certificates_ending",
            "Certificates that have to be renewed now: the log names them.",
            value=sum(ends_soon(one, now) for one in known.values()),
        )


def ends_soon(one: Certificate, now: float) -> bool:
    """Whether it is time to renew a certificate; ``now`` in Unix seconds."""
    return one.not_after - now < min(WARN_DAYS * DAY, (one.not_after - one.not_before) / 3)
