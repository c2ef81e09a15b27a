//! The real program in the kernel, one packet at a time.
//!
//! [`Xdp`] loads the object, maps its tables into memory and feeds it frames
//! with `BPF_PROG_TEST_RUN`, in a network namespace of its own with one veth
//! pair towards the clients and one towards the servers. Where a redirected
//! frame goes cannot be read from a test run; the live tests look at the devices.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap as BpfHashMap, Map, MapData, RingBuf};
use aya::programs::Xdp as XdpProgram;
use aya::{Ebpf, TestRun as _, TestRunAttrs, TestRunOptions};
use balancer_agent::dataplane::Tables;
use balancer_agent::dataplane::mapped::Mapped;
use common::counters::Reason;
use common::flow::buckets_for;
use common::limits;
use common::tables::{Cursor, Event, Settings, names};
use nix::sched::CloneFlags;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::setup::{CLIENTS, CLIENTS_MAC, SERVERS, SERVERS_MAC, STRANGER, World};

/// Where the object is, if not in `target/bpf/balancer.o` of the workspace.
pub const OBJECT_VARIABLE: &str = "BALANCER_EBPF_OBJECT";

/// What the program told the kernel to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// What became of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The verdict.
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// How often each reason was counted; reasons that were not are absent.
pub type Reasons = BTreeMap<Reason, u64>;

/// Traffic counters of one slot, summed over CPUs, in the order of
/// [`common::counters::Traffic`].
pub type TrafficWords = [u64; 8];

/// The program, loaded.
pub struct Xdp {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
    /// The tables in memory.
    pub tables: Tables,
    buffer: Vec<u8>,
}

/// A loaded program: one test's own, or the one that the tests of a process take
/// turns with, because the verifier takes its time.
pub enum Loaded {
    /// In a network namespace of its own.
    Alone(Box<Xdp>),
    /// In the namespace that all share.
    Shared(MutexGuard<'static, Slot>),
}

/// The program that tests take turns with, and its namespace.
pub struct Shared {
    xdp: Xdp,
    namespace: File,
}

/// Loaded at first use; what prevented that is told to every test, not tried again.
pub type Slot = Option<Result<Shared, String>>;

static SHARED: Mutex<Slot> = Mutex::new(None);

/// Flows that the shared program's tables are rated for.
const SHARED_FLOWS: u32 = 32_768;

impl Loaded {
    /// Waits for the shared program, loading it the first time; leaves it as if
    /// just loaded, with `world` in its tables, and the calling thread in its
    /// namespace.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn shared(world: &World) -> Result<Self> {
        // A test that failed leaves nothing behind that the reset does not clear.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.as_mut() {
            Some(Ok(shared)) => {
                nix::sched::setns(&shared.namespace, CloneFlags::CLONE_NEWNET)
                    .context("cannot enter the network namespace")?;
                shared.xdp.reset(world)?;
            }
            Some(Err(error)) => bail!("{error}"),
            None => match Shared::start(world) {
                Ok(started) => *shared = Some(Ok(started)),
                Err(error) => {
                    *shared = Some(Err("see the first test that failed".to_owned()));
                    return Err(error);
                }
            },
        }
        Ok(Self::Shared(shared))
    }

    /// A program with tables of a size of its own.
    ///
    /// # Errors
    /// As above.
    pub fn alone(world: &World, settings: Settings) -> Result<Self> {
        Ok(Self::Alone(Box::new(Xdp::start(world, settings)?)))
    }
}

impl Shared {
    fn start(world: &World) -> Result<Self> {
        let xdp = Xdp::start(world, settings_for(SHARED_FLOWS))?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { xdp, namespace })
    }
}

impl Deref for Loaded {
    type Target = Xdp;

    fn deref(&self) -> &Xdp {
        match self {
            Self::Alone(xdp) => xdp,
            Self::Shared(shared) => match &**shared {
                Some(Ok(shared)) => &shared.xdp,
                _ => unreachable!("made from a loaded one"),
            },
        }
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Xdp {
        match self {
            Self::Alone(xdp) => xdp,
            Self::Shared(shared) => match &mut **shared {
                Some(Ok(shared)) => &mut shared.xdp,
                _ => unreachable!("made from a loaded one"),
            },
        }
    }
}

/// `struct xdp_md` of the kernel.
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
pub(crate) struct XdpMd {
    pub data: u32,
    pub data_end: u32,
    pub data_meta: u32,
    pub ingress_ifindex: u32,
    pub rx_queue_index: u32,
    pub egress_ifindex: u32,
}

/// Settings for tables that hold `flows` flows each.
pub fn settings_for(flows: u32) -> Settings {
    let mask = buckets_for(flows) - 1;
    Settings {
        seed: 0x5eed_0f0a_11e5_7ab1,
        flow4_mask: mask,
        flow6_mask: mask,
        half_open_mask: mask,
        reserved: 0,
    }
}

impl Xdp {
    /// The program with the given world in its tables. The calling thread moves
    /// into a network namespace of its own.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn start(world: &World, settings: Settings) -> Result<Self> {
        enter_namespace()?;
        let path = std::env::var_os(OBJECT_VARIABLE).map_or_else(
            || crate::object::target().join("bpf/balancer.o"),
            PathBuf::from,
        );
        let object = std::fs::read(&path).with_context(|| {
            format!(
                "no kernel program at {}: run `cargo xtask build-ebpf`, or name it in {OBJECT_VARIABLE}",
                path.display()
            )
        })?;
        let (mut ebpf, tables) = crate::object::load(&object, settings)?;
        let events = ebpf.take_map(names::EVENTS).context("no map EVENTS")?;
        let xdp = Self {
            events: RingBuf::try_from(match events {
                Map::RingBuf(data) => Map::RingBuf(data),
                other => bail!("EVENTS is {other:?}"),
            })?,
            ebpf,
            tables,
            buffer: vec![0; 4096],
        };
        world.install(&xdp.tables);
        Ok(xdp)
    }

    /// Forgets every flow, fragment, cursor and event, and writes `world` anew.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reset(&mut self, world: &World) -> Result<()> {
        let t = &self.tables;
        clear(&t.flows4.buckets);
        clear(&t.flows4.tags);
        clear(&t.flows6.buckets);
        clear(&t.flows6.tags);
        clear(&t.half_open.buckets);
        clear(&t.half_open.tags);
        for index in [&t.frontend_index, &t.endpoint_index] {
            for bucket in 0..index.len() {
                index.write(bucket, FromZeros::new_zeroed());
            }
        }
        for slot in 0..world.frontends.len() as u32 {
            t.cursors.write(slot, Cursor::default());
        }
        for at in 0..world.snat.len() as u32 * limits::SNAT_PORTS {
            t.snat_ports.write(at, FromZeros::new_zeroed());
        }
        let mut fragments: BpfHashMap<_, [u8; FRAGMENT_KEY], u32> =
            BpfHashMap::try_from(self.ebpf.map_mut(names::FRAGMENTS).context("FRAGMENTS")?)?;
        let keys: Vec<_> = fragments.keys().collect::<Result<_, _>>()?;
        for key in keys {
            fragments.remove(&key)?;
        }
        world.install(&self.tables);
        self.events();
        Ok(())
    }

    /// Runs one frame as if it had come in on `ifindex`.
    ///
    /// # Errors
    /// What the kernel says; a frame under 14 bytes is refused by it.
    pub fn run(&mut self, frame: &[u8], ifindex: u32) -> Result<Run> {
        let context = XdpMd {
            data_end: frame.len() as u32,
            ingress_ifindex: ifindex,
            ..XdpMd::default()
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.program()?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut buffer),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::default()
        });
        self.buffer = buffer;
        let result = result.with_context(|| format!("test run of {} bytes", frame.len()))?;
        let len = result.data_size_out as usize;
        ensure!(len <= self.buffer.len(), "a frame of {len} bytes came out");
        Ok(Run {
            action: match result.return_value {
                0 => Action::Aborted,
                1 => Action::Drop,
                2 => Action::Pass,
                3 => Action::Tx,
                4 => Action::Redirect,
                other => bail!("the program returned {other}"),
            },
            frame: self.buffer[..len].to_vec(),
        })
    }

    /// Runs one frame for real: whatever the program decides happens.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run_live(&mut self, frame: &[u8], ifindex: u32) -> Result<()> {
        let context = XdpMd {
            data_end: frame.len() as u32,
            ingress_ifindex: ifindex,
            ..XdpMd::default()
        };
        self.program()?.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_bytes()),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        })?;
        Ok(())
    }

    /// All reasons counted since the program was loaded.
    pub fn reasons(&self) -> Reasons {
        let counts = self.tables.counters.reasons();
        Reason::ALL
            .iter()
            .copied()
            .zip(counts)
            .filter(|(_, n)| *n != 0)
            .collect()
    }

    /// Traffic of a frontend since the program was loaded.
    pub fn frontend_traffic(&self, slot: u16) -> TrafficWords {
        zerocopy::transmute!(self.tables.counters.frontend(u32::from(slot)))
    }

    /// Traffic of a backend since the program was loaded.
    pub fn backend_traffic(&self, slot: u16) -> TrafficWords {
        zerocopy::transmute!(self.tables.counters.backend(u32::from(slot)))
    }

    /// Takes the events out of the ring.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            match Event::read_from_bytes(&item) {
                Ok(event) => events.push(event),
                Err(_) => panic!("an event of {} bytes", item.len()),
            }
        }
        events
    }

    fn program(&self) -> Result<&XdpProgram> {
        Ok(self
            .ebpf
            .program(names::PROGRAM)
            .context("no program")?
            .try_into()?)
    }
}

/// The reasons that `after` counts more than `before`, and by how much.
pub fn delta(before: &Reasons, after: &Reasons) -> Reasons {
    after
        .iter()
        .map(|(reason, n)| (*reason, n - before.get(reason).unwrap_or(&0)))
        .filter(|(_, n)| *n != 0)
        .collect()
}

const FRAGMENT_KEY: usize = size_of::<common::tables::FragmentKey>();

fn clear<T: FromBytes + IntoBytes + Immutable + Copy>(table: &Mapped<T>) {
    let zero = T::new_zeroed();
    for at in 0..table.len() {
        table.write(at, zero);
    }
}

/// Moves the calling thread into a fresh network namespace with the devices of
/// [`crate::setup`]: `clients` and `servers`, whose far ends are `client0` and
/// `server0`, and `stranger`. The namespace goes when the thread ends.
fn enter_namespace() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "packet tests load a kernel program and need root: run `cargo xtask test` as root"
    );
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    command("ip link set lo up")?;
    for (name, index, peer, mac) in [
        ("clients", CLIENTS, "client0", CLIENTS_MAC),
        ("servers", SERVERS, "server0", SERVERS_MAC),
        ("stranger", STRANGER, "stranger0", [2, 0, 0, 0, 0, 0x57]),
    ] {
        let mac = mac.map(|b| format!("{b:02x}")).join(":");
        command(&format!(
            "ip link add {name} index {index} address {mac} type veth peer name {peer}"
        ))?;
        command(&format!("ip link set {name} up"))?;
        command(&format!("ip link set {peer} up"))?;
    }
    Ok(())
}

/// Runs a command in the calling thread's namespace.
///
/// # Errors
/// When it cannot be started or fails, with what it said.
pub fn command(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("cannot run `{program}`: run `cargo xtask setup`"))?;
    ensure!(
        output.status.success(),
        "`{line}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
