"""Images as requests carry them: uploaded bytes, data: URLs, and http(s) URLs where the operator allows them."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from .errors import bad_request

_DATA_URL = re.compile(r"data:[\w.+-]{0,64}/?[\w.+-]{0,64}(;[\w.+-]{1,64}=[\w.+-]{0,64}){0,4};base64,", re.IGNORECASE)


@dataclass(frozen=True)
class RequestImage:
    """One image: its bytes or its URL, and the field of the request that it came in."""

    content: bytes | str
    param: str

    @property
    def remote(self) -> bool:
        return isinstance(self.content, str) and not self.content[:5].lower() == "data:"

    def decode(self) -> bytes:
        """The bytes of an upload or a data: URL. The media type that the URL claims is not believed, nor needed.

        Raises:
            ApiError: 400.
        """
        if isinstance(self.content, bytes):
            return self.content
        head = _DATA_URL.match(self.content[:512])
        if head is None:
            raise bad_request("a data: URL must look like data:image/png;base64,...", self.param, "invalid_data_url")
        try:
            return base64.b64decode(self.content[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise bad_request("the data: URL is not valid base64", self.param, "invalid_base64") from None
