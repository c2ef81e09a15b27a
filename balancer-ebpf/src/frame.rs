//! Bounds-checked access to the bytes of a frame.
//!
//! The verifier proves every access against the frame's end; [`Frame::at`] is the
//! comparison that it wants to see. Addresses are plain numbers here because the
//! kernel hands them over so; on the host a test makes them from a slice.

/// Headers that begin behind this offset are not looked for.
pub const OFFSET_MAX: usize = 16_383;

/// Start and end of the frame's linear bytes.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Address of the first byte.
    pub data: usize,
    /// Address behind the last byte.
    pub end: usize,
}

impl Frame {
    /// The address of `len` bytes at `offset`, if the frame has them.
    #[inline(always)]
    pub fn at(&self, offset: usize, len: usize) -> Option<usize> {
        // The verifier wants a bound on the very register that is added to a packet's
        // address, hence opaque: the compiler would test one copy and add another.
        let offset = opaque(offset);
        if offset > OFFSET_MAX {
            return None;
        }
        let start = opaque(self.data + offset);
        if start + len > self.end {
            None
        } else {
            Some(start)
        }
    }

    /// Bytes in the frame.
    #[inline(always)]
    pub fn len(&self) -> usize {
        // Opaque, lest the compiler spreads the difference over other sums: the
        // verifier allows a difference of both ends, and no other arithmetic.
        opaque(self.end - self.data)
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.end == self.data
    }
}

/// The same number, of which the compiler knows nothing. It would otherwise leave
/// out a comparison that follows from another one; the verifier does not follow.
#[inline(always)]
fn opaque(number: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut number = number;
        // SAFETY: a move of a register to itself. (With no instruction at all there
        // would be two line numbers for one place, which the kernel refuses.)
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem)) };
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// Loads a number from an address that [`Frame::at`] gave (or below it in the
/// same run of bytes).
///
/// # Safety
/// `size_of::<T>()` bytes at `at` must be readable.
#[inline(always)]
pub unsafe fn load<T: Copy>(at: usize) -> T {
    // Every machine that we run on loads unaligned words, but LLVM's BPF target
    // takes `read_unaligned` for a load of single bytes; so for BPF the load is
    // spelled as an aligned one.
    #[cfg(target_arch = "bpf")]
    // SAFETY: readable, by the caller.
    unsafe {
        *(at as *const T)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: readable, by the caller.
    unsafe {
        (at as *const T).read_unaligned()
    }
}

/// Stores a number; see [`load`].
///
/// # Safety
/// `size_of::<T>()` bytes at `at` must be writable.
#[inline(always)]
pub unsafe fn store<T: Copy>(at: usize, value: T) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: writable, by the caller.
    unsafe {
        *(at as *mut T) = value;
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: writable, by the caller.
    unsafe {
        (at as *mut T).write_unaligned(value);
    }
}
