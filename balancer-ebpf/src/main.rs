//! The kernel object: one XDP entry point.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use balancer_ebpf::steer;

/// Steers one packet; `docs/kernel.md` says how. Without the macro of aya, which
/// would put one more call around every packet.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn balancer(ctx: *mut xdp_md) -> u32 {
    steer::packet(&XdpContext::new(ctx)).act()
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL compatible: some helpers ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
