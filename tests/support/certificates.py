"""Certificates of an authority of our own."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["Authority", "openssl"]


class Authority:
    """Certificates of an authority of our own, made by the openssl command."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca, self._ca_key = directory / "ca.pem", directory / "ca.key"
        request = ["req", "-x509", *_NEW_KEY, "-keyout", str(self._ca_key), "-out", str(self.ca), "-days", "2"]
        openssl(*request, "-subj", "/CN=ours", "-addext", "keyUsage=critical,keyCertSign")

    def issue(self, name: str, alternatives: str) -> tuple[Path, Path]:
        """(certificate, key) for `IP:127.0.0.1`, `DNS:a.example`."""
        cert, key, request = (self._directory / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n")
        openssl("req", *_NEW_KEY, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}")
        signing = ["x509", "-req", "-in", str(request), "-out", str(cert), "-days", "2", "-extfile", str(extensions)]
        openssl(*signing, "-CA", str(self.ca), "-CAkey", str(self._ca_key), "-CAcreateserial")
        return cert, key


_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments: str) -> None:
    """Run the openssl command. Raises CalledProcessError."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
