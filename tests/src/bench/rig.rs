//! The two objects, loaded side by side: the balancer with a small world written
//! into its tables by hand, and the wrappers and floors that measure it.

use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use balancer_agent::dataplane::Tables;
use balancer_agent::dataplane::mapped::{Mapped, Memory};
use balancer_ebpf::plan::{self, Plan, Sunk};
use common::flow::{buckets_for, half_open_buckets_for};
use common::limits;
use common::tables::{Backend, Forwarding, Settings, names};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::clock;
use crate::object;
use crate::xdp::XdpMd;

/// Flows that the balancer's tables are made for.
pub const FLOWS: u32 = 1_048_576;
/// Half-open flows that they are made for: the agent's default.
pub const HALF_OPEN: u32 = 262_144;

/// The balancer's program, its maps mapped into memory.
pub struct Balancer {
    ebpf: Ebpf,
    /// The tables.
    pub tables: Tables,
}

impl Balancer {
    /// Loads and verifies it; the tables are empty.
    ///
    /// # Errors
    /// Says what is missing or what the kernel refused.
    pub fn load() -> Result<Self> {
        let settings = Settings {
            seed: 0x0bad_5eed_0dd5_ba11,
            flow4_mask: buckets_for(FLOWS) - 1,
            flow6_mask: buckets_for(FLOWS) - 1,
            half_open_mask: half_open_buckets_for(HALF_OPEN) - 1,
            reserved: 0,
        };
        let (ebpf, tables) = object::load(&read(&object::balancer())?, settings)?;
        Ok(Self { ebpf, tables })
    }

    /// The program.
    ///
    /// # Errors
    /// When it is not loaded.
    pub fn fd(&self) -> Result<ProgramFd> {
        fd(&self.ebpf, names::PROGRAM)
    }

    /// Attaches it in the driver to a device of this thread's namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&mut self, ifindex: u32) -> Result<XdpLink> {
        attach(&mut self.ebpf, names::PROGRAM, ifindex)
    }

    /// Bytes of kernel memory behind all maps, as the kernel accounts for them.
    ///
    /// # Errors
    /// When the account can't be read.
    pub fn memory_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for (name, map) in self.ebpf.maps() {
            let (Map::Array(data)
            | Map::PerCpuArray(data)
            | Map::LruHashMap(data)
            | Map::RingBuf(data)) = map
            else {
                // The log of the program, and other small things.
                continue;
            };
            let info = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
            let text = std::fs::read_to_string(&info)?;
            let bytes = text.lines().find_map(|l| l.strip_prefix("memlock:"));
            let bytes = bytes.with_context(|| format!("no account of map {name}"))?;
            sum += bytes.trim().parse::<u64>()?;
        }
        Ok(sum)
    }

    /// The state word of a backend, asked of the kernel's map by a mapping of its own.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn state_in_kernel(&self, slot: u16) -> Result<u32> {
        let map = self.ebpf.map(names::FORWARDING).context("no FORWARDING")?;
        let Map::Array(data) = map else {
            bail!("FORWARDING is no array");
        };
        let memory = Memory::kernel(data.fd().as_fd(), size_of::<Forwarding>())?;
        let at = offset_of!(Forwarding, backends);
        let backends = Mapped::<Backend>::part(&Arc::new(memory), at, limits::BACKENDS);
        Ok(backends.read(u32::from(slot)).state)
    }
}

/// Room in the maps of the floors.
#[derive(Clone, Copy, Debug)]
pub struct LruSizes {
    /// Entries of the map that is only looked up in.
    pub hit: u32,
    /// Entries of the map that is inserted into.
    pub insert: u32,
}

/// The wrappers and floors.
pub struct Wrappers {
    ebpf: Ebpf,
    target: ProgramArray<MapData>,
    plan: Mapped<Plan>,
    misses: Mapped<u64>,
    sunk: Mapped<Sunk>,
}

/// One run of a program over many packets.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// What the program returned for the last packet.
    pub action: u32,
    /// CPU time per packet, in nanoseconds.
    pub per_packet: f64,
}

const PROGRAMS: [&str; 16] = [
    "pass",
    "mac_swap",
    "lru_hit4",
    "lru_hit6",
    "lru_fill4",
    "lru_fill6",
    "lru_insert4",
    "lru_insert6",
    "forward4",
    "forward6",
    "reply4",
    "reply6",
    "generate4",
    "answer4",
    "sink",
    "through",
];

impl Wrappers {
    /// Loads them with floors for one IP version.
    ///
    /// # Errors
    /// Says what is missing or what the kernel refused.
    pub fn load(v4: bool, sizes: LruSizes) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let family = if v4 { 0 } else { 1 };
        loader.map_max_entries(plan::LRU[family], sizes.hit);
        loader.map_max_entries(plan::LRU_NEW[family], sizes.insert);
        let mut ebpf = loader
            .load(&read(&object::bench())?)
            .context("cannot load the benchmarks' object")?;
        for name in PROGRAMS {
            load(&mut ebpf, name)?;
        }
        let target = ebpf.take_map(plan::TARGET).context("no TARGET")?;
        Ok(Self {
            target: ProgramArray::try_from(target)?,
            plan: mapped(&ebpf, plan::PLAN, 1)?,
            misses: mapped(&ebpf, plan::MISSES, 1)?,
            sunk: mapped(&ebpf, plan::SUNK, 1)?,
            ebpf,
        })
    }

    /// A program of this object.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn fd(&self, name: &str) -> Result<ProgramFd> {
        fd(&self.ebpf, name)
    }

    /// Says which packets the wrappers make from now on.
    pub fn set_plan(&self, plan: Plan) {
        self.plan.write(0, plan);
    }

    /// What has reached the sink.
    pub fn sunk(&self) -> Sunk {
        self.sunk.read(0)
    }

    /// Attaches a program in the driver to a device of this thread's namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&mut self, program: &str, ifindex: u32) -> Result<XdpLink> {
        attach(&mut self.ebpf, program, ifindex)
    }

    /// Runs a generator: its frames really leave by the device, one of this thread's
    /// namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run_live(
        &mut self,
        generator: &str,
        frame: &[u8],
        ifindex: u32,
        packets: u32,
        batch: u32,
    ) -> Result<()> {
        let context = XdpMd {
            data_end: frame.len() as u32,
            ingress_ifindex: ifindex,
            ..XdpMd::default()
        };
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_bytes()),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        };
        program(&self.ebpf, generator)?
            .test_run(options)
            .with_context(|| format!("live frames of {generator}"))?;
        Ok(())
    }

    /// Runs `wrapper` around `target` for `packets` packets. A floor that did not
    /// find its flow is an error.
    ///
    /// # Errors
    /// As said, and what the kernel says.
    pub fn run(
        &mut self,
        wrapper: &str,
        target: &ProgramFd,
        frame: &[u8],
        packets: u32,
    ) -> Result<Run> {
        self.aim(target)?;
        self.run_bare(wrapper, frame, packets)
    }

    /// Puts a program where the wrappers call it. That takes the kernel a while.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn aim(&mut self, target: &ProgramFd) -> Result<()> {
        Ok(self.target.set(0, target, 0)?)
    }

    /// Runs a program of this object on its own, or a wrapper around what it was
    /// aimed at before.
    ///
    /// # Errors
    /// As above.
    pub fn run_bare(&mut self, name: &str, frame: &[u8], packets: u32) -> Result<Run> {
        let misses = self.misses.read(0);
        let xdp = program(&self.ebpf, name)?;
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let before = clock::thread_time()?;
        let result = xdp
            .test_run(options)
            .with_context(|| format!("test run of {name}"))?;
        let time = clock::thread_time()? - before;
        let missed = self.misses.read(0) - misses;
        ensure!(missed == 0, "{name} missed {missed} of {packets} flows");
        Ok(Run {
            action: result.return_value,
            per_packet: time as f64 / f64::from(packets),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    let program = ebpf.program(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = program_mut(ebpf, name)?;
    let loaded = program.load();
    loaded.with_context(|| format!("the kernel refused {name}"))
}

fn fd(ebpf: &Ebpf, name: &str) -> Result<ProgramFd> {
    Ok(program(ebpf, name)?.fd()?.try_clone()?)
}

fn attach(ebpf: &mut Ebpf, name: &str, ifindex: u32) -> Result<XdpLink> {
    let program = program_mut(ebpf, name)?;
    let link = program
        .attach_to_if_index(ifindex, XdpMode::Driver)
        .with_context(|| format!("attach {name}"))?;
    Ok(program.take_link(link)?)
}

fn mapped<T>(ebpf: &Ebpf, name: &str, len: u32) -> Result<Mapped<T>>
where
    T: FromBytes + IntoBytes + Immutable + Copy,
{
    let Some(Map::Array(map)) = ebpf.map(name) else {
        bail!("there is no array {name}");
    };
    Mapped::kernel(map.fd().as_fd(), len).with_context(|| format!("cannot map {name}"))
}
