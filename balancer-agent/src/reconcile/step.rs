//! One change to the kernel tables, small enough that the tables are sound before
//! and after it, and safe to repeat.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use common::tables::{
    Backend, Device, Endpoint, Frontend, Hop, RingRef, SnatAddress, frontend_flags, state,
};
use common::{Addr, Be16};

/// Which index a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Index {
    /// Address, port, protocol to frontend.
    Frontends,
    /// Address, port, protocol to endpoint.
    Endpoints,
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontends => "frontend index",
            Self::Endpoints => "endpoint index",
        })
    }
}

/// A change. Slots are those of the table that the step names.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Writes, or with interface 0 frees, a device.
    Device {
        /// Slot.
        slot: u32,
        /// Its content.
        device: Device,
    },
    /// Writes address and ports of a snat address, in one store when only the ports
    /// change. The cursor is the kernel's.
    Snat {
        /// Slot.
        slot: u8,
        /// Its content.
        address: SnatAddress,
    },
    /// Writes an endpoint that no index entry names yet, or frees one (protocol 0).
    Endpoint {
        /// Slot.
        slot: u16,
        /// Its content.
        endpoint: Endpoint,
    },
    /// Stores one entry of an index; 0 frees it.
    Index {
        /// Which index.
        index: Index,
        /// Bucket.
        bucket: u32,
        /// Entry of the bucket.
        position: u8,
        /// As `tables::index_entry` makes it.
        entry: u32,
    },
    /// Writes a whole backend that is not present yet; its state holds nothing but
    /// the generation.
    Backend {
        /// Slot.
        slot: u16,
        /// Its content.
        entry: Box<Backend>,
    },
    /// Writes the hop that the state does not name.
    Hop {
        /// Slot of the backend.
        slot: u16,
        /// Which of the two.
        which: u8,
        /// Its content.
        hop: Hop,
    },
    /// Stores a backend's state.
    State {
        /// Slot of the backend.
        slot: u16,
        /// The word.
        state: u32,
    },
    /// Writes a ring where no frontend's ring lies.
    Ring {
        /// Where.
        region: RingRef,
        /// Backend slots in turn.
        turns: Vec<u32>,
    },
    /// Writes a whole frontend that is not present yet (flags 0).
    Frontend {
        /// Slot.
        slot: u16,
        /// Its content.
        entry: Frontend,
    },
    /// Stores a frontend's ring.
    FrontendRing {
        /// Slot of the frontend.
        slot: u16,
        /// Its new ring.
        ring: RingRef,
    },
    /// Stores a frontend's policy and flags: they share a word with port and
    /// protocol, which stay as they are.
    FrontendFlags {
        /// Slot of the frontend.
        slot: u16,
        /// [`common::tables::Unavailable`] as a number.
        unavailable: u8,
        /// [`frontend_flags`].
        flags: u32,
    },
    /// Stores a frontend's snat slots, then their number. With the number 0 only
    /// that; otherwise the slots repeat to the end of the list, so that neither the
    /// old nor the new number reaches a slot that is not meant.
    FrontendSnat {
        /// Slot of the frontend.
        slot: u16,
        /// How many.
        count: u8,
        /// Slots of snat addresses.
        slots: [u8; 8],
    },
    /// Stores a frontend's identity; the kernel does not read it.
    FrontendId {
        /// Slot of the frontend.
        slot: u16,
        /// The identity.
        id: u64,
    },
    /// Removes every flow of slots that are about to be freed.
    Purge {
        /// Slots of backends.
        backends: Vec<u16>,
        /// Slots of frontends.
        frontends: Vec<u16>,
        /// Slots of snat addresses.
        snat: Vec<u8>,
    },
}

/// An address and port of the tables, for people.
pub(super) fn socket(addr: Addr, port: Be16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), port.host())
}

/// A protocol number, for people.
pub(super) fn protocol(number: u8) -> &'static str {
    match number {
        1 => "echo",
        6 => "tcp",
        17 => "udp",
        _ => "?",
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { slot, device } if device.ifindex == 0 => {
                write!(f, "device {slot}: free")
            }
            Self::Device { slot, device } => {
                write!(f, "device {slot}: interface {} ", device.ifindex)?;
                mac(f, &device.mac)
            }
            Self::Snat { slot, address } if address.addr == Addr::UNSPECIFIED => {
                write!(f, "snat {slot}: free")
            }
            Self::Snat { slot, address } => write!(
                f,
                "snat {slot}: {} ports {}-{}",
                IpAddr::from(address.addr),
                address.first_port,
                address.last_port
            ),
            Self::Endpoint { slot, endpoint } if endpoint.proto == 0 => {
                write!(f, "endpoint {slot}: free")
            }
            Self::Endpoint { slot, endpoint } => write!(
                f,
                "endpoint {slot}: {} {}",
                socket(endpoint.addr, endpoint.port),
                protocol(endpoint.proto)
            ),
            Self::Index {
                index,
                bucket,
                position,
                entry,
            } => {
                write!(f, "{index} bucket {bucket} entry {position}: ")?;
                match entry & 0xffff {
                    0 => f.write_str("free"),
                    slot => write!(f, "slot {}", slot - 1),
                }
            }
            Self::Backend { slot, entry } => write!(
                f,
                "backend {slot}: {} {} endpoint {}",
                socket(entry.addr, entry.port),
                protocol(entry.proto),
                entry.endpoint
            ),
            Self::Hop { slot, which, hop } => {
                write!(f, "backend {slot}: hop {which} interface {} ", hop.ifindex)?;
                mac(f, &hop.macs[..6])
            }
            Self::State { slot, state } => {
                write!(f, "backend {slot}: state")?;
                backend_state(f, *state)
            }
            Self::Ring { region, turns } => {
                write!(f, "ring at chunk {}: backends", region.chunk)?;
                const SHOWN: usize = 16;
                for slot in turns.iter().take(SHOWN) {
                    write!(f, " {slot}")?;
                }
                f.write_str(if turns.len() > SHOWN { " ..." } else { "" })
            }
            Self::Frontend { slot, entry } => write!(
                f,
                "frontend {slot}: {} {}",
                socket(entry.addr, entry.port),
                protocol(entry.proto)
            ),
            Self::FrontendRing { slot, ring } => write!(
                f,
                "frontend {slot}: ring at chunk {}, {} slots",
                ring.chunk, ring.len
            ),
            Self::FrontendFlags {
                slot,
                unavailable,
                flags,
            } => {
                let policy = match unavailable {
                    0 => "reset",
                    1 => "drop",
                    _ => "pass",
                };
                let what = match (
                    flags & frontend_flags::PRESENT != 0,
                    flags & frontend_flags::CLOSING != 0,
                ) {
                    (false, _) => "free",
                    (true, false) if flags & frontend_flags::LOCAL != 0 => "present, local",
                    (true, false) => "present",
                    (true, true) => "closing",
                };
                write!(f, "frontend {slot}: {what}, unavailable {policy}")
            }
            Self::FrontendSnat { slot, count, slots } => {
                write!(f, "frontend {slot}: snat")?;
                if *count == 0 {
                    f.write_str(" none")?;
                }
                for slot in slots.iter().take(usize::from(*count)) {
                    write!(f, " {slot}")?;
                }
                Ok(())
            }
            Self::FrontendId { slot, id } => write!(f, "frontend {slot}: id {id:016x}"),
            Self::Purge {
                backends,
                frontends,
                snat,
            } => {
                f.write_str("flows: remove those of")?;
                if !backends.is_empty() {
                    write!(f, " backends {backends:?}")?;
                }
                if !frontends.is_empty() {
                    write!(f, " frontends {frontends:?}")?;
                }
                if !snat.is_empty() {
                    write!(f, " snat {snat:?}")?;
                }
                Ok(())
            }
        }
    }
}

fn backend_state(f: &mut fmt::Formatter<'_>, word: u32) -> fmt::Result {
    if word & state::PRESENT == 0 {
        f.write_str(" free")?;
    }
    for (bit, name) in [
        (state::PRESENT, "present"),
        (state::USABLE, "usable"),
        (state::STOPPED, "stopped"),
        (state::WATCHED, "watched"),
        (state::LOCAL, "local"),
    ] {
        if word & bit != 0 {
            write!(f, " {name}")?;
        }
    }
    if word & state::HOP_VALID != 0 {
        write!(f, " hop {}", u8::from(word & state::HOP_SLOT != 0))?;
    }
    write!(f, " generation {}", word >> state::GENERATION_SHIFT)
}

fn mac(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for (i, byte) in bytes.iter().enumerate() {
        write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
    }
    Ok(())
}
