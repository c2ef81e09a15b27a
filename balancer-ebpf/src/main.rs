//! The kernel object: one XDP entry point.
#![no_std]
#![no_main]

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use balancer_ebpf::steer;

/// Steers one packet; `docs/kernel.md` says how.
#[xdp]
pub fn balancer(ctx: XdpContext) -> u32 {
    steer::packet(&ctx).act()
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL compatible: some helpers ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
