//! A typed view of a table's memory, shared with the kernel or on the heap.
//!
//! The kernel program reads (and for flows, writes) the same memory at any
//! moment, so every access is volatile or atomic and word by word; a reader of a
//! whole entry may see it half written and must check what it read (flows do so
//! by comparing `meta` before and after).

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A stretch of memory that several tables can lie in.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    /// Owns the memory where it is the heap's; else it is mapped, and unmapped on drop.
    heap: Option<Vec<u64>>,
}

// SAFETY: the memory is shared with the kernel anyway; all access is volatile or
// atomic through raw pointers, and no reference into it is ever handed out.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory of this process.
    pub fn heap(bytes: usize) -> Self {
        let mut words = vec![0u64; bytes.div_ceil(8)];
        let base = NonNull::new(words.as_mut_ptr().cast()).expect("a Vec's pointer is never null");
        Self {
            base,
            bytes,
            heap: Some(words),
        }
    }

    /// The memory of a BPF array map that was made with `BPF_F_MMAPABLE` and has
    /// `bytes` bytes of values.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn kernel(map: BorrowedFd<'_>, bytes: usize) -> std::io::Result<Self> {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let bytes = bytes.next_multiple_of(4096);
        let size = bytes
            .try_into()
            .map_err(|_| std::io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            bytes,
            heap: None,
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.heap.is_none() {
            // SAFETY: mapped by `kernel` with this length, and nothing borrows it.
            let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.bytes) };
        }
    }
}

/// `len` entries of `T`, each at a multiple of `size_of::<T>()`.
///
/// `T` must have a size that is a multiple of 8, as the entries of BPF arrays
/// are laid out at multiples of 8 bytes.
#[derive(Debug)]
pub struct Mapped<T> {
    /// Keeps what `base` points into.
    _memory: Arc<Memory>,
    base: NonNull<u8>,
    len: u32,
    _entry: PhantomData<T>,
}

// SAFETY: as for `Memory`.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Mapped<T> {
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0);
        size_of::<T>() / 8
    };

    /// The entries that begin at byte `offset` of the memory.
    ///
    /// # Panics
    /// When they reach beyond it, or `offset` is no multiple of 8.
    pub fn part(memory: &Arc<Memory>, offset: usize, len: u32) -> Self {
        let bytes = Self::WORDS * 8 * len as usize;
        assert!(offset.is_multiple_of(8) && offset + bytes <= memory.bytes);
        Self {
            // SAFETY: within the memory.
            base: unsafe { memory.base.add(offset) },
            _memory: memory.clone(),
            len,
            _entry: PhantomData,
        }
    }

    /// Zeroed memory of this process.
    pub fn heap(len: u32) -> Self {
        let bytes = Self::WORDS * 8 * len as usize;
        Self::part(&Arc::new(Memory::heap(bytes)), 0, len)
    }

    /// All `len` entries of a BPF array map; see [`Memory::kernel`].
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn kernel(map: BorrowedFd<'_>, len: u32) -> std::io::Result<Self> {
        let bytes = Self::WORDS * 8 * len as usize;
        Ok(Self::part(&Arc::new(Memory::kernel(map, bytes)?), 0, len))
    }

    /// Number of entries.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory behind the table.
    pub fn bytes(&self) -> usize {
        size_of::<T>() * self.len as usize
    }

    fn word(&self, index: u32, byte: usize) -> *mut u64 {
        assert!(index < self.len, "entry {index} of a table of {}", self.len);
        assert!(byte < size_of::<T>());
        // SAFETY: within the memory, by the two assertions.
        unsafe {
            self.base
                .as_ptr()
                .add(index as usize * size_of::<T>() + byte)
                .cast()
        }
    }

    /// A copy of the entry, read word by word.
    ///
    /// # Panics
    /// When `index` is beyond the table, as for all methods here.
    pub fn read(&self, index: u32) -> T {
        let mut entry = T::new_zeroed();
        let from = self.word(index, 0);
        let to = (&raw mut entry).cast::<u64>();
        for i in 0..Self::WORDS {
            // SAFETY: both sides have WORDS words; T accepts any bytes. `to` may be
            // aligned to less than 8, hence unaligned.
            unsafe { to.add(i).write_unaligned(from.add(i).read_volatile()) };
        }
        entry
    }

    /// Replaces the entry, word by word, in rising order.
    pub fn write(&self, index: u32, entry: T) {
        let from = (&raw const entry).cast::<u64>();
        let to = self.word(index, 0);
        for i in 0..Self::WORDS {
            // SAFETY: as in `read`; T has no padding (IntoBytes).
            unsafe { to.add(i).write_volatile(from.add(i).read_unaligned()) };
        }
    }

    /// The 32-bit word at byte `offset` of the entry (use `core::mem::offset_of!`).
    pub fn atomic_u32(&self, index: u32, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<T>());
        // SAFETY: in bounds and aligned; lives as long as self.
        unsafe { AtomicU32::from_ptr(self.word(index, offset).cast()) }
    }

    /// The 64-bit word at byte `offset` of the entry.
    pub fn atomic_u64(&self, index: u32, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        // SAFETY: in bounds and aligned; lives as long as self.
        unsafe { AtomicU64::from_ptr(self.word(index, offset)) }
    }

    /// The 16-bit word at byte `offset` of the entry.
    pub fn atomic_u16(&self, index: u32, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2) && offset + 2 <= size_of::<T>());
        // SAFETY: in bounds and aligned; lives as long as self.
        unsafe { AtomicU16::from_ptr(self.word(index, offset).cast()) }
    }

    /// Stores one 32-bit word.
    pub fn store_u32(&self, index: u32, offset: usize, value: u32) {
        self.atomic_u32(index, offset)
            .store(value, Ordering::Release);
    }

    /// Stores one 64-bit word.
    pub fn store_u64(&self, index: u32, offset: usize, value: u64) {
        self.atomic_u64(index, offset)
            .store(value, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::tables::{Backend, Frontend};
    use std::mem::offset_of;

    #[test]
    fn entries_keep_apart() {
        let t = Mapped::<Frontend>::heap(3);
        let f = Frontend {
            flags: 7,
            id: 9,
            ..Frontend::default()
        };
        t.write(1, f);
        assert_eq!(t.read(1), f);
        assert_eq!(t.read(0), Frontend::default());
        assert_eq!(t.read(2), Frontend::default());
        t.store_u32(1, offset_of!(Frontend, flags), 1);
        t.store_u64(1, offset_of!(Frontend, ring), 5);
        assert_eq!(
            t.read(1),
            Frontend {
                flags: 1,
                ring: 5,
                id: 9,
                ..Frontend::default()
            }
        );
    }

    #[test]
    #[should_panic(expected = "entry 2 of a table of 2")]
    fn beyond_the_end_panics() {
        Mapped::<Backend>::heap(2).read(2);
    }
}
