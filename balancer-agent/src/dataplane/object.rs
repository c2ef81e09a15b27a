//! The kernel program's object, embedded by the build where it was there.

/// The ELF object of the XDP program; `None` in a build without one, which can
/// do everything but steer.
pub const OBJECT: Option<&[u8]> = embedded();

/// What to tell a user whose agent has no object.
pub const MISSING: &str = "this build of balancer carries no kernel program: run \
                           `cargo xtask build-ebpf`, then build again";

#[cfg(ebpf_object)]
const fn embedded() -> Option<&'static [u8]> {
    /// ELF parsers read words in place, so the bytes must be aligned like them.
    #[repr(C, align(32))]
    struct Aligned<B: ?Sized>(B);
    static BYTES: &Aligned<[u8]> =
        &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/balancer.o")));
    Some(&BYTES.0)
}

#[cfg(not(ebpf_object))]
const fn embedded() -> Option<&'static [u8]> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedded_object_is_an_aligned_elf_for_bpf() {
        let Some(object) = OBJECT else { return };
        assert_eq!(object.as_ptr().addr() % 8, 0);
        assert_eq!(&object[..4], b"\x7fELF");
        // e_machine, EM_BPF.
        assert_eq!(object[18..20], 247u16.to_le_bytes());
    }
}
