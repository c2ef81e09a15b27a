//! The kernel side of the dataplane: the program, its maps and its links.
//!
//! All three are pinned on a bpf file system and outlive the agent. A start finds
//! what an earlier one left and takes it over: the maps as they are, with every
//! flow in them; the links by replacing the program on each in one atomic step. A
//! crash at any point leaves a state that the next start understands:
//!
//! - `instance` owns the pin directory, its lock, and what it may hold;
//! - `bpffs` finds the file system that it lies on;
//! - `load` brings program and maps together, and maps those into memory;
//! - `attach` keeps the program on the interfaces;
//! - `events` reads what the program tells.
//!
//! Nothing outside this folder names aya.

mod attach;
mod bpffs;
mod error;
mod events;
mod instance;
mod load;
mod sys;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::flow::{buckets_for, half_open_buckets_for};
use common::tables::{Settings, names};

pub use attach::{AttachError, AttachMode, Attached};
pub use error::KernelError;
pub use events::{Events, KernelLog};
pub use instance::Removed;
pub use load::entries;

use super::{Tables, flows};
use crate::model::{Xdp, XdpMode};
use attach::Attacher;
use instance::{Instance, Place, State};
use load::Maps;
use sys::Netns;

/// Flows that the tables have room for. They are rounded up, see
/// [`common::flow::buckets_for`], and hold from the first start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Established IPv4 flows.
    pub flows_ipv4: u32,
    /// Established IPv6 flows.
    pub flows_ipv6: u32,
    /// Half-open flows.
    pub half_open: u32,
}

impl TableSizes {
    fn settings(self, seed: u64) -> Settings {
        Settings {
            seed,
            flow4_mask: buckets_for(self.flows_ipv4) - 1,
            flow6_mask: buckets_for(self.flows_ipv6) - 1,
            half_open_mask: half_open_buckets_for(self.half_open) - 1,
            reserved: 0,
        }
    }
}

/// What [`Kernel::open`] needs to know.
#[derive(Clone, Debug)]
pub struct KernelOptions<'a> {
    /// The ELF object of the program; see [`super::object::OBJECT`].
    pub object: &'a [u8],
    /// Names of the interfaces to attach to.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub mode: XdpMode,
    /// Sizes of fresh tables.
    pub sizes: TableSizes,
    /// Where to pin; `None` for a directory of our network namespace's own below
    /// the bpf file system's `balancer`.
    pub pin_dir: Option<PathBuf>,
}

impl<'a> KernelOptions<'a> {
    /// As configured.
    pub fn new(object: &'a [u8], xdp: &Xdp) -> Self {
        Self {
            object,
            interfaces: xdp.interfaces.clone(),
            mode: xdp.mode,
            sizes: TableSizes {
                flows_ipv4: xdp.flows_ipv4,
                flows_ipv6: xdp.flows_ipv6,
                half_open: xdp.half_open,
            },
            pin_dir: xdp.pin_dir.clone(),
        }
    }
}

/// How [`Kernel::open`] began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing was pinned; the tables are empty.
    Fresh,
    /// Pins of a start that was cut short, or of a network namespace that is
    /// gone, were removed; the tables are empty.
    Recovered,
    /// The pinned tables were taken over with all that is in them.
    Adopted,
}

/// What [`Kernel::open`] found and did, for the log.
#[derive(Clone, Debug)]
pub struct Opened {
    /// How it began.
    pub start: Start,
    /// Where the pins are.
    pub pin_dir: PathBuf,
    /// The settings in force.
    pub settings: Settings,
    /// What the configuration asks for, when the adopted tables have other sizes;
    /// they are kept for the sake of their flows. The seed says nothing here.
    pub sizes_ignored: Option<Settings>,
    /// The pins are in a mount namespace that may end with this process, and then
    /// steering ends with them.
    pub private_mount: bool,
    /// Interfaces that an adopting start could not attach to. A fresh start that
    /// can't attach fails instead.
    pub failed: Vec<AttachError>,
    /// Pin directories of network namespaces that are gone, now removed.
    pub removed: Vec<String>,
}

impl Opened {
    /// One sentence for each thing that an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(asked) = self.sizes_ignored {
            let kept = self.settings;
            warnings.push(format!(
                "the flow tables keep the sizes they were made with ({}, {} and {} buckets), not \
                 the configured ones ({}, {} and {}): `balancer unload` makes room for others, \
                 and forgets all flows",
                u64::from(kept.flow4_mask) + 1,
                u64::from(kept.flow6_mask) + 1,
                u64::from(kept.half_open_mask) + 1,
                u64::from(asked.flow4_mask) + 1,
                u64::from(asked.flow6_mask) + 1,
                u64::from(asked.half_open_mask) + 1,
            ));
        }
        if self.private_mount {
            warnings.push(format!(
                "{} is in a private mount namespace: steering may end with this process; mount a \
                 bpf file system at /sys/fs/bpf on the host, or set `pin_dir`",
                self.pin_dir.display()
            ));
        }
        warnings.extend(self.failed.iter().map(|e| format!("not attached to {e}")));
        warnings
    }
}

/// The program, its maps and its links, held by this process alone.
///
/// Dropping it leaves everything in the kernel as it is.
pub struct Kernel {
    tables: Arc<Tables>,
    attacher: Mutex<Attacher>,
    events: Mutex<Option<aya::maps::Map>>,
    log: Mutex<Option<KernelLog>>,
    memory_bytes: u64,
    program_id: u32,
    instance: Instance,
}

impl Kernel {
    /// Takes over what is pinned for our network namespace, or makes it anew, and
    /// attaches the program.
    ///
    /// The network namespace is that of the calling thread.
    ///
    /// # Errors
    /// See [`KernelError`]. What was steering before goes on unchanged; a fresh
    /// start leaves nothing behind.
    pub fn open(options: &KernelOptions<'_>) -> Result<(Self, Opened), KernelError> {
        sys::lift_memlock_limit();
        let netns =
            Netns::current().map_err(KernelError::io("cannot identify the network namespace"))?;
        let place = Place::choose(options.pin_dir.as_deref(), netns)?;
        let instance = Instance::acquire(place)?;
        let (start, settings) = match instance.state(netns)? {
            State::Ready(header) => (Start::Adopted, header.settings),
            State::Empty => (Start::Fresh, options.sizes.settings(rand::random())),
            State::HalfMade => {
                instance.clear()?;
                (Start::Recovered, options.sizes.settings(rand::random()))
            }
        };
        if start != Start::Adopted {
            make(options, settings, netns, &instance).or_else(|e| abandon(&instance, e))?;
        }
        let running =
            Running::adopt(options, settings, &instance).and_then(|running| {
                match running.attacher.failed() {
                    failed if start != Start::Adopted && !failed.is_empty() => {
                        Err(KernelError::Attach(failed.to_vec()))
                    }
                    _ => Ok(running),
                }
            });
        let running = match running {
            Err(error) if start != Start::Adopted => return abandon(&instance, error),
            other => other?,
        };

        let asked = options.sizes.settings(settings.seed);
        let opened = Opened {
            start,
            pin_dir: instance.shown().into(),
            settings,
            sizes_ignored: (asked != settings).then_some(asked),
            private_mount: instance.place().private,
            failed: running.attacher.failed().to_vec(),
            removed: instance.remove_dead_siblings(),
        };
        let kernel = Self {
            tables: running.tables,
            program_id: running.attacher.program_id(),
            attacher: Mutex::new(running.attacher),
            events: Mutex::new(Some(running.events)),
            log: Mutex::new(running.log),
            memory_bytes: running.memory_bytes,
            instance,
        };
        Ok((kernel, opened))
    }

    /// The tables, as shared memory.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Where the pins are.
    pub fn pin_dir(&self) -> &Path {
        self.instance.shown()
    }

    /// The kernel's number for the program that was loaded.
    pub fn program_id(&self) -> u32 {
        self.program_id
    }

    /// Bytes of kernel memory behind all maps, as the kernel accounts for them.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Where the program runs.
    pub fn attached(&self) -> Vec<Attached> {
        self.attacher().attached().to_vec()
    }

    /// Interfaces where it should run and does not.
    pub fn failed(&self) -> Vec<AttachError> {
        self.attacher().failed().to_vec()
    }

    /// Attaches to interfaces that are new in the list and detaches from those no
    /// longer in it; the others notice nothing. Must be called on a thread in the
    /// network namespace of [`Kernel::open`]. Returns whether anything changed.
    ///
    /// # Errors
    /// [`KernelError::Attach`] when a new one fails; then nothing has changed.
    pub fn set_interfaces(
        &self,
        interfaces: &[String],
        mode: XdpMode,
    ) -> Result<bool, KernelError> {
        self.attacher().change(interfaces, mode)
    }

    /// Attaches again where a device has come back or been made anew; to be
    /// called when interfaces change. Returns whether anything changed.
    pub fn refresh_interfaces(&self) -> bool {
        self.attacher().refresh()
    }

    /// The reader of the program's events; `None` when it was taken before. Must
    /// be called on a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// When the ring can't be mapped or waited for.
    pub fn events(&self) -> Result<Option<Events>, KernelError> {
        let map = lock(&self.events).take();
        map.map(Events::new).transpose()
    }

    /// The reader of the program's log; `None` when the program has none, or it
    /// was taken before.
    pub fn log(&self) -> Option<KernelLog> {
        lock(&self.log).take()
    }

    fn attacher(&self) -> MutexGuard<'_, Attacher> {
        lock(&self.attacher)
    }
}

/// An instance whose maps are pinned, with our program on its interfaces.
struct Running {
    tables: Arc<Tables>,
    attacher: Attacher,
    events: aya::maps::Map,
    log: Option<KernelLog>,
    memory_bytes: u64,
}

impl Running {
    fn adopt(
        options: &KernelOptions<'_>,
        settings: Settings,
        instance: &Instance,
    ) -> Result<Self, KernelError> {
        let pins = instance.maps_dir()?;
        let cpus = load::cpus()?;
        let mut maps = Maps::open(&pins, settings, cpus).map_err(|what| instance.damaged(what))?;
        let tables = Arc::new(maps.tables(settings, cpus)?);
        // No other agent runs, and we have not begun.
        tables.frontend_index.mend();
        tables.endpoint_index.mend();
        let recovered = flows::recover(&tables);
        if recovered > 0 {
            tracing::info!(recovered, "freed entries that a killed agent was removing");
        }
        let memory_bytes = maps.memory_bytes();
        let mut ebpf = load::prepare(options.object, settings, cpus, &pins)?;
        let log = KernelLog::new(&mut ebpf);
        load::program(&mut ebpf)?
            .load()
            .map_err(KernelError::program)?;
        let events = maps.take(names::EVENTS)?;
        // Last, because from here on our program is what steers.
        let mut attacher = Attacher::new(ebpf, instance.links_dir()?)?;
        attacher.settle(&options.interfaces, options.mode);
        Ok(Self {
            tables,
            attacher,
            events,
            log,
            memory_bytes,
        })
    }
}

/// Makes and pins fresh maps, and commits them by writing their header.
fn make(
    options: &KernelOptions<'_>,
    settings: Settings,
    netns: Netns,
    instance: &Instance,
) -> Result<(), KernelError> {
    let pins = instance.maps_dir()?;
    let cpus = load::cpus()?;
    load::prepare(options.object, settings, cpus, &pins)?;
    let maps = Maps::open(&pins, settings, cpus).map_err(|what| KernelError::Object { what })?;
    load::write_header(&maps.tables(settings, cpus)?, settings, netns.number());
    Ok(())
}

/// Removes what a fresh start that failed has made.
fn abandon<T>(instance: &Instance, error: KernelError) -> Result<T, KernelError> {
    if let Err(cleanup) = instance.remove() {
        tracing::warn!(error = %cleanup, "a failed start left pins behind");
    }
    Err(error)
}

/// The tables that are pinned for our network namespace, to look at: whether an agent
/// runs or not. `None` when there are none.
///
/// # Errors
/// See [`KernelError`]; the pins are of another layout, or damaged.
pub fn pinned(pin_dir: Option<&Path>) -> Result<Option<Tables>, KernelError> {
    let netns =
        Netns::current().map_err(KernelError::io("cannot identify the network namespace"))?;
    let Some(place) = Place::existing(pin_dir, netns)? else {
        return Ok(None);
    };
    let instance = Instance::unlocked(place);
    let State::Ready(header) = instance.state(netns)? else {
        return Ok(None);
    };
    let pins = instance.maps_dir()?;
    let cpus = load::cpus()?;
    let maps = Maps::open(&pins, header.settings, cpus).map_err(|what| instance.damaged(what))?;
    maps.tables(header.settings, cpus).map(Some)
}

/// Takes the program off all interfaces of our network namespace's instance and
/// removes its pins, whatever build made them: all flows are forgotten. `None`
/// when nothing was pinned.
///
/// # Errors
/// [`KernelError::InUse`] while an agent runs; [`KernelError::NotBpfFs`].
pub fn unload(pin_dir: Option<&Path>) -> Result<Option<Removed>, KernelError> {
    let netns =
        Netns::current().map_err(KernelError::io("cannot identify the network namespace"))?;
    let Some(place) = Place::existing(pin_dir, netns)? else {
        return Ok(None);
    };
    if !place.dir.exists() {
        return Ok(None);
    }
    let removed = Instance::acquire(place)?.remove()?;
    Ok((removed != Removed::default()).then_some(removed))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
