//! Backends that are this host itself: the HTTP tier of a node whose packets the same
//! node steers.
//!
//! Such a packet goes to the stack as it came, and the agent listens on the frontend's
//! own address: nothing has to be written back into replies, which never come by here.
//! No flow is kept either. The stack is the better judge of which connections it has:
//! what belongs to no flow of another backend is asked of it.

use crate::count::{on_both, pass};
use crate::forward;
use crate::parse::{Packet, proto, tcp};
use crate::steer::Family;
use crate::verdict::Verdict;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple, xdp_md};
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::XdpContext;
use common::counters::Reason;

/// `TCP_LISTEN` of the kernel's `net/tcp_states.h`.
const LISTEN: u32 = 10;

/// The first packet of a connection whose turn it is to be the host's own.
#[inline(always)]
pub fn begin(ctx: &XdpContext, slot: u32, chosen: u32) -> Verdict {
    let bytes = forward::frame(ctx).len() as u64;
    on_both(slot, chosen, [(Reason::FlowNew, 1)], |t| {
        t.flows += 1;
        t.packets_in += 1;
        t.bytes_in += bytes;
    });
    pass(Reason::LocalDelivered)
}

/// Whether a packet of no flow is for the stack: anything but a SYN, which the stack
/// answers itself when it does not know the connection (with SYN cookies it knows
/// nothing of one until now); and a SYN of a connection that the stack has, as when it
/// is repeated. Datagrams are not: a socket of theirs says nothing of who began.
#[inline(always)]
pub fn owns<F: Family>(ctx: &XdpContext, p: &Packet) -> bool {
    p.proto == proto::TCP && (p.tcp_flags & tcp::STATE != tcp::SYN || known::<F>(ctx.ctx, p))
}

/// Whether the stack has a connection between the packet's ends.
#[inline(never)]
fn known<F: Family>(ctx: *mut xdp_md, p: &Packet) -> bool {
    // SAFETY: plain numbers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if F::V4 {
        let v4 = &mut tuple.__bindgen_anon_1;
        // SAFETY: either view is plain numbers.
        let v4 = unsafe { &mut v4.ipv4 };
        v4.saddr = p.src.v4_word();
        v4.daddr = p.dst.v4_word();
        v4.sport = p.sport.0;
        v4.dport = p.dport.0;
        size_of_val(v4)
    } else {
        // SAFETY: as above.
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        v6.saddr = words(p.src.0);
        v6.daddr = words(p.dst.0);
        v6.sport = p.sport.0;
        v6.dport = p.dport.0;
        size_of_val(v6)
    };
    // SAFETY: the context is the kernel's; the socket is given back.
    unsafe {
        let sock: *mut bpf_sock = bpf_skc_lookup_tcp(
            ctx.cast(),
            &raw mut tuple,
            size as u32,
            BPF_F_CURRENT_NETNS as i64 as u64,
            0,
        );
        if sock.is_null() {
            return false;
        }
        let state = (&raw const (*sock).state).read_volatile();
        bpf_sk_release(sock.cast());
        state != LISTEN
    }
}

/// An address in the words of a socket tuple.
#[inline(always)]
fn words(addr: [u64; 2]) -> [u32; 4] {
    [
        addr[0] as u32,
        (addr[0] >> 32) as u32,
        addr[1] as u32,
        (addr[1] >> 32) as u32,
    ]
}
