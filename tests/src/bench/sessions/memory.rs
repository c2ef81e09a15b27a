//! What a session takes in memory, by the allocator's own account.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use anyhow::{Result, ensure};
use balancer_agent::session::{
    Config, Expect, GroupConfig, GroupId, Input, Manager, NodeId, Op, Replication, Store, Time,
    Token,
};
use mimalloc::MiMalloc;

use super::words::Memory;

const SESSIONS: u64 = 1_000_000;
/// Looked at after so many: often enough to meet tables that have just grown.
const STEP: u64 = 10_000;
/// Below, what a store takes without sessions counts.
const LEAST: u64 = 100_000;

static COUNTS: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicI64 = AtomicI64::new(0);

/// The agent's allocator, which can count. While it does not, it costs one look at a flag.
pub struct Counting(pub MiMalloc);

impl Counting {
    fn add(&self, bytes: usize) {
        BYTES.fetch_add(bytes as i64, Relaxed);
    }

    fn usable(&self, pointer: *mut u8) -> usize {
        // SAFETY: a block of this allocator, which is alive.
        unsafe { libmimalloc_sys::mi_usable_size(pointer.cast()) }
    }
}

// SAFETY: all is done by the allocator inside; what is added only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let pointer = unsafe { self.0.alloc(layout) };
        if COUNTS.load(Relaxed) && !pointer.is_null() {
            self.add(self.usable(pointer));
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if COUNTS.load(Relaxed) {
            BYTES.fetch_sub(self.usable(pointer) as i64, Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

/// Fills a store with a million sessions without data, with ids of this length.
///
/// # Errors
/// The program runs without [`Counting`], or the store is not what it should be.
pub fn measure(id: usize) -> Result<Memory> {
    ensure!((16..=64).contains(&id), "ids of 16 to 64 bytes");
    let group = GroupConfig {
        name: "memory".into(),
        manager: Manager::Delta,
        replication: Replication::Async,
        persistent: false,
    };
    let counted = || BYTES.load(Relaxed);
    COUNTS.store(true, Relaxed);
    let before = counted();
    let mut store = Store::new(Config::new(NodeId(1), [1, 2], vec![group]))?;
    let alone = Input::Members {
        incarnation: 1,
        members: &[],
    };
    store.handle(alone, Time(0))?;
    let mut memory = Memory {
        least: f64::INFINITY,
        ..Memory::default()
    };
    for n in 1..=SESSIONS {
        let mut text = format!("{:016X}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        text.extend(std::iter::repeat_n('A', id - text.len()));
        let request = Input::Request {
            token: Token(n),
            group: GroupId(0),
            id: text.as_bytes(),
            op: Op::Put {
                route: "tomcat-a".into(),
                ttl: 3_600_000,
                data: None,
                expect: Expect::Any,
            },
        };
        store.handle(request, Time(n / 100))?;
        while store.poll_output().is_some() {}
        if n % STEP == 0 && n >= LEAST {
            memory.million = (counted() - before) as f64 / n as f64;
            memory.least = memory.least.min(memory.million);
            memory.most = memory.most.max(memory.million);
        }
    }
    COUNTS.store(false, Relaxed);
    ensure!(
        store.counters().sessions == SESSIONS,
        "sessions are missing"
    );
    let entries = Store::entry_size() as f64;
    ensure!(memory.least > entries, "the allocator does not count");
    Ok(memory)
}
