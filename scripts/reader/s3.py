"""A bucket of an S3-compatible server: GET and LIST, signed by AWS Signature Version 4."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import os
import time
import urllib.parse
import xml.etree.ElementTree
from typing import Iterator, Optional

from stores import StoreError

# Seconds that a server may take, and how often it is asked.
TIMEOUT = 60
ATTEMPTS = 4


class Bucket:
    """A pool in a bucket. Credentials come from the environment."""

    def __init__(self, address: str, endpoint: Optional[str], region: Optional[str]) -> None:
        self.bucket, _, prefix = address.partition("/")
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.region = region or "us-east-1"
        url = urllib.parse.urlsplit(endpoint or f"https://s3.{self.region}.amazonaws.com")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise StoreError(f"{endpoint} is no address of a server: write http(s)://host[:port]")
        self.secure, self.host = url.scheme == "https", url.netloc
        self.key_id = os.environ.get("AWS_ACCESS_KEY_ID", "")
        self.secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        self.token = os.environ.get("AWS_SESSION_TOKEN")
        if not self.key_id or not self.secret:
            raise StoreError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        self.connection: Optional[http.client.HTTPConnection] = None

    def get(self, key: str, offset: int = 0, length: Optional[int] = None) -> Optional[bytes]:
        """See `Store`."""
        path = f"/{self.bucket}/{self.prefix}{key}"
        headers = {}
        if length is not None:
            headers["range"] = f"bytes={offset}-{offset + max(length, 1) - 1}"
        status, body = self._ask(path, {}, headers)
        if status == 404:
            return None
        if status == 416:
            return b""
        if status not in (200, 206):
            raise StoreError(self._refusal(key, status, body))
        # Some servers give all of it whatever range is asked for.
        if status == 200 and length is not None:
            return body[offset : offset + length]
        return body if length is None else body[:length]

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        query = {"list-type": "2", "prefix": self.prefix + prefix}
        while True:
            status, body = self._ask(f"/{self.bucket}", query, {})
            if status != 200:
                raise StoreError(self._refusal(prefix, status, body))
            page = xml.etree.ElementTree.fromstring(body)
            space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
            for key in page.iterfind(f"{space}Contents/{space}Key"):
                yield (key.text or "")[len(self.prefix) :]
            token = page.findtext(f"{space}NextContinuationToken")
            if page.findtext(f"{space}IsTruncated") != "true" or not token:
                return
            query["continuation-token"] = token

    def _refusal(self, what: str, status: int, body: bytes) -> str:
        text = body[:300].decode("utf-8", "replace")
        return f"{self.host} refuses {what} of the bucket {self.bucket}: {status} {text}"

    def _ask(self, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        """One GET, made again where the server did not answer properly."""
        why = ""
        for attempt in range(ATTEMPTS):
            time.sleep(attempt and 2**attempt / 4)
            try:
                if self.connection is None:
                    kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
                    self.connection = kind(self.host, timeout=TIMEOUT)
                target, signed = self._sign(path, query, headers)
                self.connection.request("GET", target, headers=signed)
                answer = self.connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.connection, why = None, str(error) or type(error).__name__
                continue
            if answer.status < 500 and answer.status != 429:
                return answer.status, body
            why = f"status {answer.status}"
        raise StoreError(f"{self.host} does not answer: {why}")

    def _sign(self, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The request's target and headers, signed (AWS Signature Version 4)."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        headers = dict(headers, host=self.host)
        headers.update({"x-amz-date": now, "x-amz-content-sha256": empty})
        if self.token:
            headers["x-amz-security-token"] = self.token
        quote = urllib.parse.quote
        pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in query.items())
        arguments = "&".join(f"{name}={value}" for name, value in pairs)
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = f"GET\n{quote(path)}\n{arguments}\n{lines}\n{names}\n{empty}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        key = b"AWS4" + self.secret.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return quote(path) + (f"?{arguments}" if arguments else ""), headers
