//! What happens to a packet, and the one place that turns it into an XDP action.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_redirect;

/// The decision over one packet. One word, because a BPF function returns no more:
/// the kind in the low half, a device in the high half.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Verdict(u64);

impl Verdict {
    /// To the host's own stack.
    pub const PASS: Self = Self(0);
    /// Gone.
    pub const DROP: Self = Self(1);
    /// Out of the device that it came in by.
    pub const TX: Self = Self(2);
    const REDIRECT: u64 = 3;
    /// Rewritten; where to, the kernel's routing table must say.
    pub const BY_FIB: Self = Self(4);
    /// The fast path leaves the packet to the slow one.
    pub const UNDECIDED: Self = Self(5);
    /// First of the steps that follow parsing.
    const STEP: u64 = 6;

    /// Out of another device.
    #[inline(always)]
    pub fn redirect(ifindex: u32) -> Self {
        Self(Self::REDIRECT | (ifindex as u64) << 32)
    }

    /// Parsed: the step to take, and a slot.
    #[inline(always)]
    pub fn next(kind: u32, slot: u32) -> Self {
        Self((Self::STEP + kind as u64) | (slot as u64) << 32)
    }

    /// Step and slot of a packet that was only parsed so far.
    #[inline(always)]
    pub fn step(self) -> Option<(u32, u32)> {
        let kind = (self.0 as u32).wrapping_sub(Self::STEP as u32);
        if self.0 as u32 >= Self::STEP as u32 {
            Some((kind, (self.0 >> 32) as u32))
        } else {
            None
        }
    }

    /// The XDP action, with the redirect set up.
    #[inline(always)]
    pub fn act(self) -> u32 {
        if self.0 as u32 as u64 == Self::REDIRECT {
            // SAFETY: the helper takes plain numbers.
            return unsafe { bpf_redirect((self.0 >> 32) as u32, 0) } as u32;
        }
        match self {
            Self::DROP => xdp_action::XDP_DROP,
            Self::TX => xdp_action::XDP_TX,
            _ => xdp_action::XDP_PASS,
        }
    }
}
