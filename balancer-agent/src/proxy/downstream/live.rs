//! What is counted of a frontend, for statistics and limits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::proxy::types::Cause;

/// Why a client was turned away before its request was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Malformed or ambiguous: 400.
    Malformed,
    /// Something that is not implemented or not spoken: 501, 505, 417.
    Unsupported,
    /// Head, target or number of fields over the limit: 414, 431.
    HeadTooLarge,
    /// Body over the limit: 413.
    BodyTooLarge,
    /// Head or body too slow: 408.
    Timeout,
    /// Too many connections, of the frontend or over all of them.
    Connections,
    /// Too many connections of one source.
    SourceConnections,
    /// Too many requests of one source: 429.
    SourceRequests,
    /// PROXY header missing, malformed, late or from a peer that may not send one.
    ProxyHeader,
    /// TLS handshake failed or late.
    TlsHandshake,
    /// An HTTP/2 connection ended for too many reset streams, or for breaking the protocol.
    Http2,
}

impl Refused {
    /// All, in the order of their counters.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Unsupported,
        Self::HeadTooLarge,
        Self::BodyTooLarge,
        Self::Timeout,
        Self::Connections,
        Self::SourceConnections,
        Self::SourceRequests,
        Self::ProxyHeader,
        Self::TlsHandshake,
        Self::Http2,
    ];

    /// How a request that it met ended, for the log.
    pub const fn cause(self) -> Cause {
        match self {
            Self::Timeout => Cause::ClientTimeout,
            Self::Connections | Self::SourceConnections | Self::SourceRequests => Cause::Overload,
            _ => Cause::Refused,
        }
    }

    /// Short word for metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::HeadTooLarge => "head-too-large",
            Self::BodyTooLarge => "body-too-large",
            Self::Timeout => "timeout",
            Self::Connections => "connections",
            Self::SourceConnections => "source-connections",
            Self::SourceRequests => "source-requests",
            Self::ProxyHeader => "proxy-header",
            Self::TlsHandshake => "tls-handshake",
            Self::Http2 => "http2",
        }
    }
}

/// Counters of a frontend, over all threads. Each is exact; together they are no snapshot.
#[derive(Debug, Default)]
pub struct FrontendLive {
    /// Connections now.
    pub connections: AtomicUsize,
    /// Most connections there ever were at once.
    pub connections_most: AtomicUsize,
    /// Connections ever accepted, those included that were refused at once.
    pub connections_total: AtomicU64,
    /// Connections now that are parked: idle, with nothing but their socket.
    pub parked: AtomicUsize,
    /// Requests that were handed to the handler.
    pub requests: AtomicU64,
    /// Requests now being handled or answered.
    pub in_flight: AtomicUsize,
    /// Connections that speak HTTP/2 now.
    pub http2: AtomicUsize,
    /// TLS handshakes that succeeded.
    pub tls_handshakes: AtomicU64,
    /// Of these, resumed ones.
    pub tls_resumed: AtomicU64,
    /// Bytes from clients, as carried by HTTP (after TLS).
    pub bytes_in: AtomicU64,
    /// Bytes to clients, as carried by HTTP (before TLS).
    pub bytes_out: AtomicU64,
    /// Times that accepting paused for want of file descriptors or memory.
    pub accept_pauses: AtomicU64,
    /// Connections cut because the client took no bytes for `timeouts.send`.
    pub send_timeouts: AtomicU64,
    /// Connections cut when a drain ran out of time.
    pub drain_cut: AtomicU64,
    /// Sources that could not be counted because the table was full of busy ones.
    pub sources_untracked: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
}

impl FrontendLive {
    /// Clients turned away for `cause`.
    pub fn refused(&self, cause: Refused) -> u64 {
        self.refused[cause as usize].load(Relaxed)
    }

    /// Clients turned away, for any cause.
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().map(|n| n.load(Relaxed)).sum()
    }

    /// Counts one.
    pub(super) fn refuse(&self, cause: Refused) {
        self.refused[cause as usize].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_a_counter_each() {
        let live = FrontendLive::default();
        for (i, cause) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, i);
            for _ in 0..=i {
                live.refuse(cause);
            }
        }
        for (i, cause) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(live.refused(cause), i as u64 + 1, "{}", cause.word());
        }
        assert_eq!(live.refused_total(), (1..=11).sum::<u64>());
    }
}
