//! The programs that measure the balancer under BPF_PROG_TEST_RUN: wrappers that
//! make a fresh packet of the next flow in place of the last one's remains, and
//! floors, the least that any program of this kind must do.
//!
//! A wrapper stores each header field at the width at which the programs load it:
//! a load across two recent stores would wait for both, which no frame that a
//! card has delivered would make it do.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{BPF_F_MMAPABLE, xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::XdpContext;
use balancer_ebpf::frame::{Frame, load, store};
use balancer_ebpf::parse::ETH_IPV4;
use balancer_ebpf::plan::{Plan, Sunk};
use common::{Addr, checksum};

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static MISSES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static SUNK: Array<Sunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The 5-tuple of an IPv4 packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key4 {
    src: u32,
    dst: u32,
    ports: u32,
    proto: u32,
}

/// The 5-tuple of an IPv6 packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key6 {
    src: Addr,
    dst: Addr,
    ports: u32,
    proto: u32,
}

#[map]
static LRU4: LruHashMap<Key4, u64> = LruHashMap::with_max_entries(1, 0);
#[map]
static LRU6: LruHashMap<Key6, u64> = LruHashMap::with_max_entries(1, 0);
#[map]
static LRU_NEW4: LruHashMap<Key4, u64> = LruHashMap::with_max_entries(1, 0);
#[map]
static LRU_NEW6: LruHashMap<Key6, u64> = LruHashMap::with_max_entries(1, 0);

macro_rules! program {
    ($(#[$doc:meta])* $name:ident, |$ctx:ident| $body:expr) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "xdp")]
        pub extern "C" fn $name(ctx: *mut xdp_md) -> u32 {
            #[inline(always)]
            fn body($ctx: *mut xdp_md) -> Option<u32> {
                $body
            }
            match body(ctx) {
                Some(action) => action,
                None => xdp_action::XDP_ABORTED,
            }
        }
    };
}

program!(
    /// Floor: nothing.
    pass, |_ctx| Some(xdp_action::XDP_PASS)
);
program!(
    /// Floor: both hardware addresses exchanged, sent back.
    mac_swap, |ctx| swap(&frame(ctx))
);
program!(
    /// Floor: a MAC swap and one hit in an LRU hash.
    lru_hit4, |ctx| hit(ctx, key4, |k| LRU4.get_ptr(k).is_some())
);
program!(
    /// The same for IPv6.
    lru_hit6, |ctx| hit(ctx, key6, |k| LRU6.get_ptr(k).is_some())
);
program!(
    /// Fills the map of `lru_hit4`.
    lru_fill4, |ctx| hit(ctx, key4, |k| LRU4.insert(k, 1, 0).is_ok())
);
program!(
    /// Fills the map of `lru_hit6`.
    lru_fill6, |ctx| hit(ctx, key6, |k| LRU6.insert(k, 1, 0).is_ok())
);
program!(
    /// Floor: a MAC swap and an insertion into an LRU hash.
    lru_insert4, |ctx| hit(ctx, key4, |k| LRU_NEW4.insert(k, 1, 0).is_ok())
);
program!(
    /// The same for IPv6.
    lru_insert6, |ctx| hit(ctx, key6, |k| LRU_NEW6.insert(k, 1, 0).is_ok())
);
program!(
    /// Wrapper: IPv4, from client to frontend.
    forward4, |ctx| wrap4::<true>(ctx)
);
program!(
    /// Wrapper: IPv4, from backend to client.
    reply4, |ctx| wrap4::<false>(ctx)
);
program!(
    /// Wrapper: IPv6, from client to frontend.
    forward6, |ctx| wrap6::<true>(ctx)
);
program!(
    /// Wrapper: IPv6, from backend to client.
    reply6, |ctx| wrap6::<false>(ctx)
);

program!(
    /// Generator of live frames: IPv4, from client to frontend, out of the device
    /// that they pretend to have come in by.
    generate4, |ctx| {
        make4::<true>(ctx)?;
        Some(xdp_action::XDP_TX)
    }
);
program!(
    /// The same from backend to client.
    answer4, |ctx| {
        make4::<false>(ctx)?;
        Some(xdp_action::XDP_TX)
    }
);
program!(
    /// Floor of the live frames: from one device to the other, untouched.
    through, |_ctx| {
        let plan = PLAN.get_ptr(0)?;
        // SAFETY: the map's value; the helper takes plain numbers.
        Some(unsafe { bpf_redirect(u32::from((*plan).out), 0) } as u32)
    }
);
program!(
    /// The end of all IPv4 frames: counted and dropped.
    sink, |ctx| sunk(ctx)
);

#[inline(always)]
fn frame(ctx: *mut xdp_md) -> Frame {
    // SAFETY: the context is the kernel's. Volatile: see `forward::frame`.
    unsafe {
        Frame {
            data: (&raw const (*ctx).data).read_volatile() as usize,
            end: (&raw const (*ctx).data_end).read_volatile() as usize,
        }
    }
}

#[inline(always)]
fn swap(frame: &Frame) -> Option<u32> {
    let eth = frame.at(0, 14)?;
    // SAFETY: within the 14 bytes.
    unsafe {
        let (to, from) = (
            (load::<u32>(eth), load::<u16>(eth + 4)),
            (load::<u32>(eth + 6), load::<u16>(eth + 10)),
        );
        store(eth, from.0);
        store(eth + 4, from.1);
        store(eth + 6, to.0);
        store(eth + 10, to.1);
    }
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn hit<K>(
    ctx: *mut xdp_md,
    key: impl Fn(&Frame) -> Option<K>,
    access: impl Fn(&K) -> bool,
) -> Option<u32> {
    let frame = frame(ctx);
    let key = key(&frame)?;
    if !access(&key) {
        let misses = MISSES.get_ptr_mut(0)?;
        // SAFETY: the map's value; one thread runs these programs.
        unsafe { *misses += 1 };
        return None;
    }
    swap(&frame)
}

#[inline(always)]
fn key4(frame: &Frame) -> Option<Key4> {
    let eth = frame.at(0, 54)?;
    // SAFETY: within the 54 bytes.
    Some(unsafe {
        Key4 {
            src: load(eth + 26),
            dst: load(eth + 30),
            ports: load::<u16>(eth + 34) as u32 | (load::<u16>(eth + 36) as u32) << 16,
            proto: load::<u8>(eth + 23) as u32,
        }
    })
}

#[inline(always)]
fn key6(frame: &Frame) -> Option<Key6> {
    let eth = frame.at(0, 74)?;
    // SAFETY: within the 74 bytes.
    Some(unsafe {
        Key6 {
            src: Addr([load(eth + 22), load(eth + 30)]),
            dst: Addr([load(eth + 38), load(eth + 46)]),
            ports: load::<u16>(eth + 54) as u32 | (load::<u16>(eth + 56) as u32) << 16,
            proto: load::<u8>(eth + 20) as u32,
        }
    })
}

/// The flow whose turn it is.
#[inline(always)]
fn advance(plan: *mut Plan) -> u64 {
    // SAFETY: the map's value; one thread runs these programs.
    unsafe {
        let flow = (*plan).next;
        (*plan).next = flow.wrapping_add((*plan).step) & (*plan).mask;
        flow
    }
}

/// Restores what a program may have rewritten, but for addresses and ports.
///
/// # Safety
/// `eth` must be the address of as many bytes as the offsets need.
#[inline(always)]
unsafe fn restore(eth: usize, plan: &Plan, ttl: usize, l4_check: usize) {
    let macs = (&raw const plan.macs) as usize;
    // SAFETY: by the caller; the addresses are in the map's value.
    unsafe {
        store(eth, load::<u32>(macs));
        store(eth + 4, load::<u16>(macs + 4));
        store(
            eth + 6,
            load::<u16>(macs + 6) as u32 | (load::<u16>(macs + 8) as u32) << 16,
        );
        store(eth + 10, load::<u16>(macs + 10));
        store(eth + ttl, plan.ttl[0]);
        store(eth + l4_check, plan.l4_check);
    }
}

#[inline(always)]
fn wrap4<const FORWARD: bool>(ctx: *mut xdp_md) -> Option<u32> {
    fill4::<FORWARD, false>(ctx)?;
    // SAFETY: the map outlives the call.
    unsafe { TARGET.tail_call(&XdpContext::new(ctx), 0) };
    None
}

/// A packet for a real stack, which looks at the IPv4 header's checksum.
#[inline(always)]
fn make4<const FORWARD: bool>(ctx: *mut xdp_md) -> Option<()> {
    fill4::<FORWARD, true>(ctx)
}

#[inline(always)]
fn fill4<const FORWARD: bool, const CHECK: bool>(ctx: *mut xdp_md) -> Option<()> {
    let plan = PLAN.get_ptr_mut(0)?;
    let flow = advance(plan);
    // SAFETY: the map's value, which nobody changes while a program runs.
    let plan = unsafe { &*plan };
    let (client, port) = plan.client_of(flow);
    let eth = frame(ctx).at(0, 54)?;
    // SAFETY: within the 54 bytes.
    unsafe {
        restore(eth, plan, 22, 50);
        let mut check = plan.ip_check;
        if CHECK {
            // The plan's is that of the first flow's packet.
            let first = checksum::fold(plan.client.v4_word() as u64);
            let this = checksum::fold(client.v4_word() as u64);
            check = checksum::update(check, first, this);
        }
        store(eth + 24, check);
        if FORWARD {
            store(eth + 26, client.v4_word());
            store(eth + 30, plan.peer.v4_word());
            store(eth + 34, port.0);
            store(eth + 36, plan.port.0);
        } else {
            store(eth + 26, plan.peer.v4_word());
            store(eth + 30, client.v4_word());
            store(eth + 34, plan.port.0);
            store(eth + 36, port.0);
        }
    }
    Some(())
}

#[inline(always)]
fn sunk(ctx: *mut xdp_md) -> Option<u32> {
    let (plan, sunk) = (PLAN.get_ptr(0)?, SUNK.get_ptr_mut(0)?);
    let Some(eth) = frame(ctx).at(0, 54) else {
        return Some(xdp_action::XDP_DROP);
    };
    // SAFETY: within the 54 bytes; the maps' values, with one device that feeds this.
    unsafe {
        if load::<u16>(eth + 12) != ETH_IPV4 {
            // Neighbours and multicast memberships are no part of the measurement.
        } else if load::<u16>(eth + 36) == (*plan).sink_port.0 {
            (*sunk).translated += 1;
        } else {
            (*sunk).strange += 1;
        }
    }
    Some(xdp_action::XDP_DROP)
}

#[inline(always)]
fn wrap6<const FORWARD: bool>(ctx: *mut xdp_md) -> Option<u32> {
    let plan = PLAN.get_ptr_mut(0)?;
    let flow = advance(plan);
    // SAFETY: the map's value, which nobody changes while a program runs.
    let plan = unsafe { &*plan };
    let (client, port) = plan.client_of(flow);
    let eth = frame(ctx).at(0, 74)?;
    let ((src, sport), (dst, dport)) = if FORWARD {
        ((client, port), (plan.peer, plan.port))
    } else {
        ((plan.peer, plan.port), (client, port))
    };
    // SAFETY: within the 74 bytes.
    unsafe {
        restore(eth, plan, 21, 70);
        store(eth + 22, src.0[0]);
        store(eth + 30, src.0[1]);
        store(eth + 38, dst.0[0]);
        store(eth + 46, dst.0[1]);
        store(eth + 54, sport.0);
        store(eth + 56, dport.0);
        TARGET.tail_call(&XdpContext::new(ctx), 0);
    }
    None
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL compatible: some helpers ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
