//! The agent's kernel side against the real kernel: what is pinned, taken over,
//! refused and removed. Every test lives in a network namespace of its own, which
//! ends with the test's thread. Needs root and the kernel program.

#[path = "kernel_side/support.rs"]
mod support;

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use balancer_agent::dataplane::kernel::{
    AttachError, AttachMode, Kernel, KernelError, KernelOptions, Opened, Start, TableSizes, unload,
};
use balancer_agent::dataplane::object;
use balancer_agent::model::XdpMode;
use common::counters::Reason;
use common::flow::{Bucket, Flow4};
use common::tables::Header;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use support::{Wire, index, ip, link_line, program_on, veth, wait_for};

const BPFFS: &str = "/sys/fs/bpf";

#[test]
fn a_restart_takes_over_the_maps_and_loses_no_frame() {
    in_namespace(|| {
        veth("va", "vb");
        let (kernel, opened) = open(&options(&["va"]));
        assert_eq!(opened.start, Start::Fresh);
        assert_eq!(opened.warnings(), Vec::<String>::new());
        let attached = kernel.attached();
        assert_eq!(attached.len(), 1);
        assert_eq!(
            (&*attached[0].interface, attached[0].mode),
            ("va", AttachMode::Native)
        );
        assert_eq!(attached[0].ifindex, index("va"));
        assert!(kernel.memory_bytes() > 1 << 20, "{}", kernel.memory_bytes());
        let mark = Flow4 {
            key: 0x1234_5678,
            ..Flow4::default()
        };
        let mut bucket = kernel.tables().flows4.buckets.read(3);
        bucket.0[7] = mark;
        kernel.tables().flows4.buckets.write(3, bucket);
        let first_program = kernel.program_id();
        drop(kernel);
        assert_eq!(
            program_on("va"),
            Some(first_program),
            "the program outlives its agent"
        );

        // Frames go through one by one while agents come and go; a frame that
        // met no program, or none of ours, would not have been counted.
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut wire = Wire::new("vb", "va");
                while !stop.load(Ordering::Relaxed) {
                    wire.pass();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..5 {
                let before = sent.load(Ordering::Relaxed);
                let (kernel, opened) = open(&options(&["va"]));
                assert_eq!(opened.start, Start::Adopted);
                assert_eq!(program_on("va"), Some(kernel.program_id()));
                assert_ne!(kernel.program_id(), first_program);
                assert_eq!(kernel.tables().flows4.buckets.read(3).0[7], mark);
                wait_for("frames", || sent.load(Ordering::Relaxed) > before + 10);
            }
            stop.store(true, Ordering::Relaxed);
        });
        let (kernel, _) = open(&options(&["va"]));
        assert_eq!(count(&kernel, Reason::NotIp), sent.load(Ordering::Relaxed));
    });
}

#[test]
fn maps_of_another_layout_are_refused_and_can_be_unloaded() {
    in_namespace(|| {
        veth("va", "vb");
        let (kernel, opened) = open(&options(&["va"]));
        let version = offset_of!(Header, abi_version);
        kernel
            .tables()
            .header
            .store_u32(0, version, common::ABI_VERSION + 6);
        let program = kernel.program_id();
        drop(kernel);

        let error = refused(&options(&["va"]));
        assert!(
            matches!(error, KernelError::AbiMismatch { pinned, ours, .. }
                if pinned == common::ABI_VERSION + 6 && ours == common::ABI_VERSION),
            "{error}"
        );
        assert!(error.to_string().contains("balancer unload"), "{error}");
        assert_eq!(program_on("va"), Some(program), "what steers goes on");

        let removed = unload(None).unwrap().expect("something was pinned");
        assert_eq!(removed.links, 1);
        assert_eq!(removed.maps, common::tables::names::PINNED.len());
        assert_eq!(program_on("va"), None);
        assert!(!opened.pin_dir.exists());
        assert_eq!(unload(None).unwrap(), None);
        assert_eq!(open(&options(&["va"])).1.start, Start::Fresh);
    });
}

#[test]
fn pinned_sizes_win_over_configured_ones() {
    in_namespace(|| {
        veth("va", "vb");
        let (kernel, first) = open(&options(&["va"]));
        drop(kernel);
        let mut larger = options(&["va"]);
        larger.sizes.flows_ipv4 *= 4;
        let (kernel, second) = open(&larger);
        assert_eq!(second.start, Start::Adopted);
        assert_eq!(second.settings, first.settings);
        assert_eq!(kernel.tables().settings(), first.settings);
        assert_eq!(
            kernel.tables().flows4.buckets.len(),
            first.settings.flow4_mask + 1
        );
        let asked = second.sizes_ignored.expect("the difference is told");
        assert!(asked.flow4_mask > first.settings.flow4_mask);
        assert_eq!(second.warnings().len(), 1);
        assert_ne!(first.settings.seed, 0);
    });
}

#[test]
fn a_second_agent_is_refused() {
    in_namespace(|| {
        veth("va", "vb");
        let (kernel, _) = open(&options(&["va"]));
        assert!(matches!(
            refused(&options(&["va"])),
            KernelError::InUse { .. }
        ));
        assert!(matches!(unload(None), Err(KernelError::InUse { .. })));
        assert_eq!(program_on("va"), Some(kernel.program_id()));
    });
}

#[test]
fn a_device_made_anew_gets_the_program_again() {
    in_namespace(|| {
        let pins = PinDir::new("anew");
        veth("va", "vb");
        veth("vc", "vd");
        let options = pins.options(&["va", "vc"]);
        let (kernel, _) = open(&options);
        let before = index("va");

        ip("link del va");
        veth("va", "vb");
        assert_ne!(index("va"), before);
        assert_eq!(program_on("va"), None);
        assert!(kernel.refresh_interfaces());
        assert_eq!(program_on("va"), Some(kernel.program_id()));
        assert!(!kernel.refresh_interfaces(), "nothing is left to do");

        drop(kernel);
        ip("link del va");
        veth("va", "vb");
        let (kernel, opened) = open(&options);
        assert_eq!(opened.start, Start::Adopted);
        assert_eq!(opened.failed, []);
        assert_eq!(program_on("va"), Some(kernel.program_id()));
        assert_eq!(pins.links(), 2, "defunct links are gone");

        drop(kernel);
        ip("link del va");
        let (kernel, opened) = open(&options);
        let interface = "va".to_owned();
        assert_eq!(opened.failed, [AttachError::NoSuchInterface { interface }]);
        assert_eq!(opened.warnings().len(), 1);
        assert_eq!(
            program_on("vc"),
            Some(kernel.program_id()),
            "the other one steers"
        );
        veth("va", "vb");
        assert!(kernel.refresh_interfaces());
        assert_eq!(kernel.failed(), []);
        assert_eq!(program_on("va"), Some(kernel.program_id()));
    });
}

#[test]
fn generic_mode_is_the_fall_back_and_says_why() {
    in_namespace(|| {
        let pins = PinDir::new("generic");
        // One receive queue, four transmit queues at the other end.
        ip(
            "link add few numrxqueues 1 numtxqueues 1 type veth peer name many numrxqueues 1 numtxqueues 4",
        );
        ip("link set few up");
        ip("link set many up");
        let auto = || KernelOptions {
            mode: XdpMode::Auto,
            ..pins.options(&["lo", "few"])
        };
        let (kernel, _) = open(&auto());
        let attached = kernel.attached();
        let modes: Vec<_> = attached.iter().map(|a| a.mode).collect();
        assert_eq!(modes, [AttachMode::Generic; 2]);
        let reason = |i: usize| attached[i].reason.clone().unwrap();
        assert!(reason(0).contains("no native XDP"), "{}", reason(0));
        assert!(reason(1).contains("veth"), "{}", reason(1));
        assert_eq!(program_on("lo"), Some(kernel.program_id()));
        let mut wire = Wire::new("many", "few");
        let before = count(&kernel, Reason::NotIp);
        wire.pass();
        assert_eq!(count(&kernel, Reason::NotIp), before + 1);
        drop(kernel);

        let (kernel, opened) = open(&auto());
        assert_eq!(opened.start, Start::Adopted);
        assert_eq!(kernel.attached().len(), 2);
        drop(kernel);
        unload(Some(&pins.dir)).unwrap();

        let native = KernelOptions {
            mode: XdpMode::Native,
            ..pins.options(&["lo"])
        };
        let error = refused(&native);
        let interface = "lo".to_owned();
        assert!(
            matches!(&error, KernelError::Attach(e) if *e == [AttachError::Unsupported { interface }]),
            "{error}"
        );
        assert!(!pins.dir.exists(), "a failed first start leaves nothing");
        let native = KernelOptions {
            mode: XdpMode::Native,
            ..pins.options(&["few"])
        };
        let error = refused(&native).to_string();
        assert!(error.contains("numrxqueues"), "{error}");
    });
}

#[test]
fn the_mode_can_be_changed() {
    in_namespace(|| {
        let pins = PinDir::new("mode");
        veth("va", "vb");
        let (kernel, _) = open(&pins.options(&["va"]));
        let names = ["va".to_owned()];
        assert!(kernel.set_interfaces(&names, XdpMode::Generic).unwrap());
        assert_eq!(kernel.attached()[0].mode, AttachMode::Generic);
        assert!(
            link_line("va").contains("xdpgeneric"),
            "{}",
            link_line("va")
        );
        assert!(kernel.set_interfaces(&names, XdpMode::Native).unwrap());
        assert!(
            !link_line("va").contains("xdpgeneric"),
            "{}",
            link_line("va")
        );
        assert_eq!(pins.links(), 1);
    });
}

#[test]
fn interfaces_come_and_go_on_reload() {
    in_namespace(|| {
        veth("va", "vb");
        veth("vc", "vd");
        let (kernel, _) = open(&options(&["va"]));
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let set = |list: &[&str]| kernel.set_interfaces(&names(list), XdpMode::Auto);

        assert!(set(&["va", "vc"]).unwrap());
        assert_eq!(program_on("vc"), Some(kernel.program_id()));
        assert!(!set(&["va", "vc"]).unwrap());

        assert!(set(&["va"]).unwrap());
        assert_eq!(program_on("vc"), None);

        let error = set(&["vc", "nowhere"]).unwrap_err();
        assert!(
            error.to_string().contains("nowhere: no such interface"),
            "{error}"
        );
        assert_eq!(
            program_on("va"),
            Some(kernel.program_id()),
            "nothing has changed"
        );
        assert_eq!(program_on("vc"), None);
        assert_eq!(kernel.attached().len(), 1);

        assert!(set(&["vc"]).unwrap());
        assert_eq!(program_on("va"), None);
        assert_eq!(program_on("vc"), Some(kernel.program_id()));
    });
}

#[test]
fn somebody_elses_program_stays() {
    in_namespace(|| {
        let (theirs, ours) = (PinDir::new("theirs"), PinDir::new("ours"));
        veth("va", "vb");
        let (kernel, _) = open(&theirs.options(&["va"]));
        let error = refused(&ours.options(&["va"]));
        assert!(error.to_string().contains("another XDP program"), "{error}");
        assert_eq!(program_on("va"), Some(kernel.program_id()));
        assert!(!ours.dir.exists());
    });
}

#[test]
fn a_first_start_that_was_cut_short_is_begun_again() {
    in_namespace(|| {
        let pins = PinDir::new("half");
        veth("va", "vb");
        let (kernel, _) = open(&pins.options(&["va"]));
        // The state before the header is written: maps, no version, no links.
        kernel.set_interfaces(&[], XdpMode::Auto).unwrap();
        let version = offset_of!(Header, abi_version);
        kernel.tables().header.store_u32(0, version, 0);
        let mut bucket: Bucket<Flow4> = kernel.tables().flows4.buckets.read(0);
        bucket.0[0].key = 1;
        kernel.tables().flows4.buckets.write(0, bucket);
        drop(kernel);

        let (kernel, opened) = open(&pins.options(&["va"]));
        assert_eq!(opened.start, Start::Recovered);
        assert_eq!(kernel.tables().flows4.buckets.read(0).0[0].key, 0);
        drop(kernel);

        // Even earlier: not all maps were made.
        unload(Some(&pins.dir)).unwrap();
        std::fs::create_dir_all(pins.dir.join("maps")).unwrap();
        let (kernel, opened) = open(&pins.options(&["va"]));
        assert_eq!(opened.start, Start::Fresh);
        kernel.set_interfaces(&[], XdpMode::Auto).unwrap();
        drop(kernel);
        std::fs::remove_file(pins.dir.join("maps/HEADER")).unwrap();
        std::fs::remove_file(pins.dir.join("maps/FORWARDING")).unwrap();
        assert_eq!(open(&pins.options(&["va"])).1.start, Start::Recovered);
    });
}

#[test]
fn a_missing_map_under_a_running_program_is_told() {
    in_namespace(|| {
        let pins = PinDir::new("missing");
        veth("va", "vb");
        let (kernel, _) = open(&pins.options(&["va"]));
        let program = kernel.program_id();
        drop(kernel);
        std::fs::remove_file(pins.dir.join("maps/FORWARDING")).unwrap();
        let error = refused(&pins.options(&["va"]));
        assert!(matches!(error, KernelError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("FORWARDING"), "{error}");
        assert_eq!(program_on("va"), Some(program));
    });
}

#[test]
fn counters_are_summed_and_zeroed() {
    in_namespace(|| {
        veth("va", "vb");
        let (kernel, _) = open(&options(&["va"]));
        assert_eq!(kernel.tables().counters.reasons().len(), Reason::ALL.len());
        let before = count(&kernel, Reason::NotIp);
        let mut wire = Wire::new("vb", "va");
        for _ in 0..7 {
            wire.pass();
        }
        assert_eq!(count(&kernel, Reason::NotIp), before + 7);

        for slot in [0, common::limits::BACKENDS - 1] {
            assert_eq!(kernel.tables().counters.backend(slot), Default::default());
        }
    });
}

#[test]
fn pins_of_a_namespace_that_is_gone_are_removed_and_others_kept() {
    let gone = in_namespace_keeping_pins(|| {
        veth("va", "vb");
        let gone = open(&options(&["va"])).1.pin_dir;
        assert!(gone.join("maps/HEADER").exists());
        gone
    });
    in_namespace(|| {
        veth("va", "vb");
        let living = open(&options(&["va"])).1.pin_dir;
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let _pins = Unload(None);
                veth("va", "vb");
                // The kernel takes a namespace apart in its own time.
                wait_for("the pins to go", || {
                    drop(open(&options(&["va"])));
                    !gone.exists()
                });
            });
            other.join().unwrap();
        });
        assert!(living.exists(), "its device lives, though no agent runs");
        assert_eq!(open(&options(&["va"])).1.start, Start::Adopted);
    });
}

#[test]
fn pins_survive_a_private_sys_as_ip_netns_makes_it() {
    in_namespace(|| {
        veth("va", "vb");
        let outside = std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).unwrap();
                umount2("/sys", MntFlags::MNT_DETACH).unwrap();
                mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
                let (kernel, opened) = open(&options(&["va"]));
                assert!(!opened.private_mount);
                assert_eq!(kernel.attached()[0].mode, AttachMode::Native);
                assert!(!Path::new(BPFFS).join("balancer").exists());
                opened.pin_dir
            });
            agent.join().unwrap()
        });
        assert!(
            outside.join("maps/HEADER").exists(),
            "{}",
            outside.display()
        );
        let (_, opened) = open(&options(&["va"]));
        assert_eq!((opened.start, opened.pin_dir), (Start::Adopted, outside));
    });
}

fn options(interfaces: &[&str]) -> KernelOptions<'static> {
    KernelOptions {
        object: object::OBJECT.expect(object::MISSING),
        interfaces: interfaces.iter().map(|s| (*s).to_owned()).collect(),
        // The loopback device has no native mode.
        mode: match interfaces.contains(&"lo") {
            true => XdpMode::Auto,
            false => XdpMode::Native,
        },
        sizes: TableSizes {
            flows_ipv4: 1_000,
            flows_ipv6: 500,
            half_open: 250,
        },
        pin_dir: None,
    }
}

fn open(options: &KernelOptions<'_>) -> (Kernel, Opened) {
    Kernel::open(options).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(options: &KernelOptions<'_>) -> KernelError {
    match Kernel::open(options) {
        Ok((_, opened)) => panic!("opened: {opened:?}"),
        Err(error) => error,
    }
}

fn count(kernel: &Kernel, reason: Reason) -> u64 {
    kernel.tables().counters.reasons()[reason as usize]
}

/// Runs a test in a fresh network namespace, and unloads what it pinned there.
fn in_namespace(test: impl FnOnce() + Send) {
    in_namespace_keeping_pins(|| {
        let _pins = Unload(None);
        test();
    });
}

fn in_namespace_keeping_pins<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root: `sudo -E cargo xtask test`"
    );
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ip("link set lo up");
            test()
        });
        run.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

/// Unloads when dropped.
struct Unload(Option<PathBuf>);

impl Drop for Unload {
    fn drop(&mut self) {
        if let Err(error) = unload(self.0.as_deref()) {
            eprintln!("not unloaded: {error}");
        }
    }
}

/// A configured pin directory: unlike the default one, no other test's agent can
/// take it for that of a namespace that is gone.
struct PinDir {
    dir: PathBuf,
    _unload: Unload,
}

impl PinDir {
    fn new(name: &str) -> Self {
        // Opening once at the default place mounts the file system if need be.
        if !Path::new(BPFFS).join("balancer").exists() {
            let _pins = Unload(None);
            drop(open(&options(&["lo"])));
        }
        let name = format!("balancer_test_{}_{name}", std::process::id());
        let dir = Path::new(BPFFS).join(name);
        Self {
            _unload: Unload(Some(dir.clone())),
            dir,
        }
    }

    fn options(&self, interfaces: &[&str]) -> KernelOptions<'static> {
        KernelOptions {
            pin_dir: Some(self.dir.clone()),
            ..options(interfaces)
        }
    }

    fn links(&self) -> usize {
        std::fs::read_dir(self.dir.join("links")).unwrap().count()
    }
}
