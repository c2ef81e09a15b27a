//! The two atomic instructions that the program needs.
//!
//! Rust's BPF target says that it has no compare-exchange, though the machine has
//! had one since version 3 (Linux 5.12); so it is written out. Both are full
//! barriers on every architecture (Documentation/bpf/standardization).

/// Puts `new` where `old` still stands; whether it did.
///
/// # Safety
/// `at` must be writable and aligned to 8 bytes.
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        let found: u64;
        // SAFETY: one instruction on the caller's word.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({at} + 0, r0, {new})",
                at = in(reg) at,
                new = in(reg) new,
                inout("r0") old => found,
            );
        }
        found == old
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
        // SAFETY: by the caller.
        unsafe { AtomicU64::from_ptr(at) }
            .compare_exchange(old, new, SeqCst, SeqCst)
            .is_ok()
    }
}

/// Adds one; the value before.
///
/// # Safety
/// `at` must be writable and aligned to 8 bytes.
#[inline(always)]
pub unsafe fn count_up(at: *mut u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value: u64 = 1;
        // SAFETY: one instruction on the caller's word.
        unsafe {
            core::arch::asm!(
                "{value} = atomic_fetch_add((u64 *)({at} + 0), {value})",
                at = in(reg) at,
                value = inout(reg) value,
            );
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
        // SAFETY: by the caller.
        unsafe { AtomicU64::from_ptr(at) }.fetch_add(1, SeqCst)
    }
}
