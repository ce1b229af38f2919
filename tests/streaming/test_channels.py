"""WebSocket channels: what one side encodes, the other reads, whatever the bytes are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.streaming.channels import (
    PROTOCOLS,
    UNNAMED,
    V1,
    V1_BASE64,
    V4,
    V4_BASE64,
    V5,
    Channel,
    ChannelClosed,
    ChannelData,
    ChannelError,
    ChannelProtocol,
    agreed_protocol,
    choose_protocol,
)


@given(st.sampled_from(PROTOCOLS), st.sampled_from(Channel), st.binary(max_size=300))
def test_round_trip(protocol: ChannelProtocol, channel: Channel, data: bytes) -> None:
    assert protocol.decode(protocol.encode(channel, data)) == ChannelData(channel, data)


@given(st.sampled_from(PROTOCOLS), st.binary(max_size=50))
def test_any_message_is_decoded_or_refused(protocol: ChannelProtocol, message: bytes) -> None:
    try:
        decoded = protocol.decode(message)
    except ChannelError:
        return
    assert (decoded is None) == (not message)


def test_bytes_on_the_wire() -> None:
    assert V5.encode(Channel.STDOUT, b"foo\n") == b"\x01foo\n"
    assert V5.encode(Channel.STDOUT, b"") == b"\x01"
    assert V5.encode_close(Channel.STDIN) == b"\xff\x00"
    assert V1_BASE64.encode(Channel.STDIN, b"foo\n") == b"0Zm9vCg=="  # the example in wsstream
    assert V1_BASE64.decode(b"1Cg==") == ChannelData(Channel.STDOUT, b"\n")


def test_half_close_is_v5_only() -> None:
    assert V5.decode(b"\xff\x00") == ChannelClosed(Channel.STDIN)
    assert V4.decode(b"\xff\x00") == ChannelData(255, b"\x00")
    with pytest.raises(ChannelError):
        V4.encode_close(Channel.STDIN)


@pytest.mark.parametrize("message", [b"\xff", b"\xff\x00\x00", b"\xff\x07"])
def test_bad_close_signal(message: bytes) -> None:
    with pytest.raises(ChannelError):
        V5.decode(message)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], UNNAMED),
        (["v5.channel.k8s.io"], V5),
        (["v4.channel.k8s.io", "v5.channel.k8s.io"], V5),
        (["v3.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"], V4),
        (["v4.base64.channel.k8s.io"], V4_BASE64),
        (["channel.k8s.io"], V1),
        (["base64.channel.k8s.io", "channel.k8s.io"], V1_BASE64),
        (["v2.channel.k8s.io", "v3.channel.k8s.io"], None),
    ],
)
def test_choice(offered: list[str], chosen: ChannelProtocol | None) -> None:
    assert choose_protocol(offered) == chosen


def test_client_takes_only_what_it_knows() -> None:
    assert agreed_protocol("v4.channel.k8s.io") is V4
    with pytest.raises(ChannelError):
        agreed_protocol("v9.channel.k8s.io")
