"""The preset zlib dictionary of SPDY/3 header blocks.

Source: section 2.6.10.1 ("Compression") of the SPDY/3 draft. It is a list of length-prefixed
words followed by one run of text, and both peers must have it byte for byte; it is checked here
by its length and by the adler32 that zlib itself puts on the wire.
"""

import struct
import zlib
from typing import Final

_PLAIN_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base "
    "content-encoding content-language content-length content-location content-md5 "
    "content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location "
    "max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after "
    "server te trailer transfer-encoding upgrade user-agent vary via warning "
    "www-authenticate method get status"
)
_WORDS: Final = (
    *_PLAIN_WORDS.split(),
    "200 OK",
    *("version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"),
)

_TEXT: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)

DICTIONARY: Final[bytes] = b"".join(
    struct.pack("!I", len(word)) + word.encode("ascii") for word in _WORDS
) + _TEXT.encode("ascii")

if len(DICTIONARY) != 1423 or zlib.adler32(DICTIONARY) != 0xE3C6A7C2:
    raise ImportError("the SPDY/3 header dictionary is damaged: no peer could read our headers")
