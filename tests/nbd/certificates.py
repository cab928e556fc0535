"""A certificate authority for tests, with the file names that nbdkit, libnbd and QEMU use."""

import subprocess
from pathlib import Path


def make_certificates(directory: Path) -> None:
    """ca-cert.pem, and server- and client-cert.pem and -key.pem signed by it, for localhost."""
    directory.mkdir()
    key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    _openssl(directory, "req", "-x509", *key, "-subj", "/CN=test CA", "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    (directory / "names").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    for who in ("server", "client"):
        names = ("-keyout", f"{who}-key.pem", "-out", f"{who}.csr")
        _openssl(directory, "req", *key, "-subj", "/CN=localhost", *names)
        signer = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "names", "-days", "2")
        _openssl(directory, "x509", "-req", "-in", f"{who}.csr", *signer, "-out", f"{who}-cert.pem")


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
