//! What the kernel program counts: traffic per frontend and backend, and one
//! counter for every way that a packet can go.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Per-CPU traffic of one frontend or one backend. `in` is towards the backend.
/// Bytes are those of whole frames without the checksum of the wire.
#[repr(C, align(64))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Traffic {
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// New flows steered.
    pub flows: u64,
    /// Flows that reached the established state.
    pub established: u64,
    /// New flows refused: no usable backend (frontend), or the backend answered
    /// its SYN with RST (backend).
    pub refused: u64,
    /// Room for a later counter; zero.
    pub reserved: u64,
}

impl Traffic {
    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.packets_in = self.packets_in.wrapping_add(other.packets_in);
        self.bytes_in = self.bytes_in.wrapping_add(other.bytes_in);
        self.packets_out = self.packets_out.wrapping_add(other.packets_out);
        self.bytes_out = self.bytes_out.wrapping_add(other.bytes_out);
        self.flows = self.flows.wrapping_add(other.flows);
        self.established = self.established.wrapping_add(other.established);
        self.refused = self.refused.wrapping_add(other.refused);
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet went the way it did. The number is the index into the
        /// per-CPU map of reasons; the name is what metrics and status show.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The name in metrics and status.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// Passed: neither end is ours.
    NotBalanced = "not_balanced",
    /// Passed: not IPv4 or IPv6 (ARP and the like).
    NotIp = "not_ip",
    /// Passed: the frame ends inside the Ethernet header or a VLAN tag.
    TruncatedEthernet = "truncated_ethernet",
    /// Passed: more than two VLAN tags.
    TooManyVlanTags = "too_many_vlan_tags",
    /// Passed: the frame ends inside the IP header or an extension header.
    TruncatedIp = "truncated_ip",
    /// Passed: wrong version or an IPv4 header shorter than 20 bytes.
    BadIpHeader = "bad_ip_header",
    /// Passed: the IP length is below its header's or beyond the frame's end.
    BadIpLength = "bad_ip_length",
    /// Passed: more IPv6 extension headers than are followed, or a routing
    /// header that still names a waypoint.
    BadExtensionHeaders = "bad_extension_headers",
    /// Passed: the packet ends inside its TCP, UDP or ICMP header.
    TruncatedTransport = "truncated_transport",
    /// Passed: TCP data offset or UDP length contradicts the packet's length.
    BadTransportLength = "bad_transport_length",
    /// Passed: TCP flags that no state allows (none, SYN+FIN, SYN+RST, FIN+RST).
    BadTcpFlags = "bad_tcp_flags",
    /// Passed: a source address or port that no client can have.
    BadSource = "bad_source",
    /// Passed: a later fragment whose first fragment is not known.
    FragmentUnknown = "fragment_unknown",
    /// Forwarded: a later fragment, along with its first.
    FragmentForwarded = "fragment_forwarded",
    /// Answered: echo to a frontend address.
    EchoAnswered = "echo_answered",
    /// Forwarded: an ICMP error about a balanced flow.
    IcmpErrorForwarded = "icmp_error_forwarded",
    /// Passed: an ICMP error about no flow that is known.
    IcmpErrorUnknown = "icmp_error_unknown",
    /// A new flow was steered.
    FlowNew = "flow_new",
    /// A flow became established.
    FlowEstablished = "flow_established",
    /// An established flow that was still in use made room for another.
    FlowEvicted = "flow_evicted",
    /// A half-open flow made room for another.
    HalfOpenEvicted = "half_open_evicted",
    /// Another CPU claimed every entry that could have been taken; the packet
    /// was steered without a flow entry or dropped, and the peer will repeat it.
    FlowTableBusy = "flow_table_busy",
    /// A packet to a frontend that is no SYN and belongs to no flow.
    FlowUnknown = "flow_unknown",
    /// Passed: a packet from a backend's port that belongs to no flow.
    ReplyUnknown = "reply_unknown",
    /// The flow named a backend that is gone or whose slot has a new owner.
    FlowStale = "flow_stale",
    /// The chosen backend already has a flow with the same client address and
    /// port by way of another frontend; the next backend was tried.
    TupleConflict = "tuple_conflict",
    /// A ring slot was skipped because its backend was not usable.
    BackendSkipped = "backend_skipped",
    /// A new flow found no usable backend.
    NoBackend = "no_backend",
    /// A packet of a flow whose backend an operator has stopped.
    BackendStopped = "backend_stopped",
    /// Refused with RST, or ICMP port unreachable.
    RefusedReset = "refused_reset",
    /// Refused in silence.
    RefusedDrop = "refused_drop",
    /// Refused by passing the packet to the host's own stack.
    RefusedPass = "refused_pass",
    /// Every probed source port of the snat addresses is in use.
    SnatExhausted = "snat_exhausted",
    /// The next hop was asked from the kernel's routing table.
    FibFallback = "fib_fallback",
    /// No next hop: the packet was left to the host's own stack to forward.
    NoNextHop = "no_next_hop",
    /// Passed unchanged: time to live or hop limit would reach zero.
    TtlExpired = "ttl_expired",
    /// The packet's room could not be changed as needed; dropped.
    AdjustFailed = "adjust_failed",
    /// An event found no room in the event ring.
    EventLost = "event_lost",
    /// A backend answered a SYN with RST.
    SynRefused = "syn_refused",
    /// A frontend has no ring, or a table entry that must exist does not.
    TableInconsistent = "table_inconsistent",
    /// Passed: to a backend that is this host itself, or of a connection with it.
    LocalDelivered = "local_delivered",
}
