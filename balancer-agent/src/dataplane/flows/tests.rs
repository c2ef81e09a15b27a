//! Entries written by hand, as the kernel program leaves them.

use super::*;
use common::flow::{key4, key6};
use common::limits::SNAT_PORTS;
use common::tables::{Settings, SnatAddress, SnatPort};
use common::{Addr, Be16, hash};

const TIMEOUTS: FlowTimeouts = FlowTimeouts {
    tcp_idle: Duration::from_secs(300),
    udp_idle: Duration::from_secs(30),
    half_open: Duration::from_secs(10),
    closed: Duration::from_secs(5),
    removed: Duration::from_secs(60),
};
const SECOND: u64 = 1_000_000_000;
/// The present in most tests.
const NOW: u64 = 100_000 * SECOND;
const CLIENT: &str = "198.51.100.7";

fn tables() -> Tables {
    let tables = Tables::heap(Settings {
        seed: 99,
        flow4_mask: 3,
        flow6_mask: 3,
        half_open_mask: 3,
        reserved: 0,
    });
    for (slot, generation) in [(1, 7), (2, 8), (3, 255)] {
        let word = state::PRESENT | generation << state::GENERATION_SHIFT;
        tables
            .backends
            .store_u32(slot, offset_of!(Backend, state), word);
    }
    tables
}

/// Valid, of backend 1, last seen `idle` seconds before [`NOW`].
fn meta(more: u16, idle: u64) -> Meta {
    Meta::new(1, 7, flags::VALID | more, seen(idle))
}

fn seen(idle: u64) -> u32 {
    ((NOW - idle * SECOND) >> SEEN_SHIFT) as u32
}

fn born(age: u64) -> u32 {
    ((NOW - age * SECOND) >> BORN_SHIFT) as u32
}

fn put<E: Stored>(table: &FlowTable<E>, bucket: u32, entry: E) {
    let mut content = table.buckets.read(bucket);
    let free = content.0.iter().position(|e| e.meta() == Meta::FREE);
    let at = free.expect("room in the bucket");
    content.0[at] = entry;
    table.buckets.write(bucket, content);
    let tag = table.tags.atomic_u16(bucket, at * 2);
    tag.store(0x8000 | at as u16, Ordering::Relaxed);
}

fn flow4(port: u16, frontend: u16, meta: Meta) -> Flow4 {
    let ip: std::net::Ipv4Addr = CLIENT.parse().unwrap();
    let word = u32::from_ne_bytes(ip.octets());
    Flow4 {
        key: key4(word, Be16::new(port), frontend),
        meta,
        ..Flow4::default()
    }
}

fn flow6(client: &str, port: u16, frontend: u16, meta: Meta, born: u32) -> Flow6 {
    Flow6 {
        key: key6(Be16::new(port), frontend),
        addr: Addr::from(client.parse::<IpAddr>().unwrap()),
        meta,
        born,
        ..Flow6::default()
    }
}

fn all(tables: &Tables) -> Vec<FlowView> {
    let mut views = Vec::new();
    for_each(tables, NOW, |view| views.push(view));
    views
}

fn expire_all(tables: &Tables) -> (u32, u32) {
    let mut cursor = Cursor::default();
    let done = expire(tables, &TIMEOUTS, NOW, &mut cursor, u32::MAX);
    assert!(done.finished);
    assert_eq!(cursor, Cursor::default());
    (done.flows, done.snat_ports)
}

#[test]
fn entries_are_decoded() {
    let t = tables();
    let snat = flags::SNAT | 5 << flags::SNAT_SLOT_SHIFT;
    put(
        &t.flows4,
        2,
        Flow4 {
            snat_port: Be16::new(4000),
            ..flow4(5555, 3, meta(flags::ANSWERED | snat, 20))
        },
    );
    put(
        &t.flows6,
        0,
        flow6("2001:db8::9", 6666, 4, meta(flags::UDP, 0), 0),
    );
    put(&t.half_open, 1, flow6(CLIENT, 7777, 3, meta(0, 1), born(1)));
    // Not to be seen: free, and claimed.
    put(&t.flows4, 0, flow4(1, 1, meta(flags::CLAIMED, 0)));
    let [a, b, c] = all(&t)[..] else {
        panic!("{:?}", all(&t));
    };
    assert_eq!(a.client, SocketAddr::new(CLIENT.parse().unwrap(), 5555));
    assert_eq!((a.frontend, a.backend, a.generation), (3, 1, 7));
    assert_eq!(
        (a.protocol, a.state),
        (Protocol::Tcp, FlowState::Established)
    );
    assert_eq!((a.snat, a.half_open), (Some((5, 4000)), false));
    assert!((18..=22).contains(&a.idle.as_secs()), "{:?}", a.idle);
    assert_eq!(b.client, "[2001:db8::9]:6666".parse().unwrap());
    assert_eq!(
        (b.frontend, b.protocol, b.state),
        (4, Protocol::Udp, FlowState::BothWays)
    );
    assert_eq!((b.idle, b.snat), (Duration::ZERO, None));
    assert_eq!(c.client, SocketAddr::new(CLIENT.parse().unwrap(), 7777));
    assert_eq!((c.state, c.half_open), (FlowState::SynSent, true));
}

#[test]
fn states() {
    let table = [
        (0, false, FlowState::Established),
        (flags::CLIENT_FIN, false, FlowState::Closing),
        (flags::SERVER_FIN, false, FlowState::Closing),
        (
            flags::CLIENT_FIN | flags::SERVER_FIN,
            false,
            FlowState::Closed,
        ),
        (flags::RESET, false, FlowState::Closed),
        (0, true, FlowState::SynSent),
        (flags::ANSWERED, true, FlowState::Answered),
        (flags::RESET, true, FlowState::Closed),
        (flags::UDP, true, FlowState::OneWay),
        (flags::UDP | flags::ANSWERED, false, FlowState::BothWays),
    ];
    for (bits, half_open, state) in table {
        let t = tables();
        let table = if half_open { &t.half_open } else { &t.flows6 };
        put(table, 0, flow6(CLIENT, 1, 1, meta(bits, 0), born(0)));
        assert_eq!(all(&t)[0].state, state, "{bits:x} {half_open}");
    }
}

#[test]
fn counts_leave_out_what_is_over() {
    let t = tables();
    let other = |backend, generation| Meta::new(backend, generation, flags::VALID, seen(0));
    put(&t.flows4, 0, flow4(1, 10, meta(0, 299)));
    put(&t.flows4, 0, flow4(2, 10, meta(0, 307)));
    put(&t.flows4, 0, flow4(3, 11, meta(flags::UDP, 25)));
    put(&t.flows4, 0, flow4(4, 11, meta(flags::UDP, 37)));
    put(&t.flows4, 1, flow4(5, 11, meta(flags::RESET, 0)));
    put(&t.flows4, 1, flow4(6, 11, other(2, 8)));
    // Of an earlier generation, of a slot that is free, of a slot that there is not.
    put(&t.flows4, 1, flow4(7, 11, other(2, 7)));
    put(&t.flows4, 1, flow4(8, 11, other(4, 0)));
    put(&t.flows4, 1, flow4(9, 11, other(0xffff, 0)));
    let snat = flags::SNAT | 6 << flags::SNAT_SLOT_SHIFT;
    put(&t.flows6, 3, flow6("2001:db8::1", 1, 10, meta(snat, 0), 0));
    put(&t.half_open, 2, flow6(CLIENT, 1, 10, meta(0, 0), born(9)));
    put(&t.half_open, 2, flow6(CLIENT, 2, 10, meta(0, 0), born(11)));
    let counts = count_by_backend(&t, &TIMEOUTS, NOW);
    let count = |established, half_open| FlowCount {
        established,
        half_open,
    };
    assert_eq!(counts.backend(1), count(3, 1));
    assert_eq!(counts.backend(2), count(1, 0));
    assert_eq!(counts.backend(4).live(), 0);
    assert_eq!(counts.frontend(10), count(2, 1));
    assert_eq!(counts.frontend(11), count(2, 0));
    assert_eq!(counts.frontend(0xffff).live(), 0);
    assert_eq!((counts.snat(6), counts.snat(5)), (1, 0));
    assert_eq!(counts.total(), count(4, 1));
}

#[test]
fn a_time_just_after_now_is_no_idleness() {
    let t = tables();
    let later = Meta::new(1, 7, flags::VALID, seen(0) + 1);
    put(&t.flows4, 0, flow4(1, 10, later));
    put(&t.half_open, 0, flow6(CLIENT, 2, 10, later, born(0) + 900));
    let views = all(&t);
    assert!(views.iter().all(|v| v.idle == Duration::ZERO), "{views:?}");
    assert_eq!(count_by_backend(&t, &TIMEOUTS, NOW).backend(1).live(), 2);
    assert_eq!(expire_all(&t).0, 0);
}

#[test]
fn expiry_by_kind() {
    let t = tables();
    let closed = flags::CLIENT_FIN | flags::SERVER_FIN;
    let kept = [
        meta(0, 299),
        meta(flags::UDP, 29),
        meta(flags::RESET, 4),
        meta(flags::SERVER_FIN, 200),
    ];
    let gone = [
        meta(0, 307),
        meta(flags::UDP, 37),
        meta(closed, 8),
        Meta::new(1, 6, flags::VALID, seen(0)),
    ];
    for (i, meta) in kept.into_iter().chain(gone).enumerate() {
        put(&t.flows4, 1, flow4(i as u16, 10, meta));
    }
    // A half-open flow goes by its age, even if the client keeps trying.
    put(&t.half_open, 0, flow6(CLIENT, 100, 10, meta(0, 0), born(9)));
    put(
        &t.half_open,
        0,
        flow6(CLIENT, 101, 10, meta(0, 0), born(11)),
    );
    put(
        &t.half_open,
        0,
        flow6(CLIENT, 102, 10, meta(flags::UDP, 20), born(99)),
    );
    // Somebody is writing it.
    put(
        &t.half_open,
        0,
        flow6(CLIENT, 103, 10, meta(flags::CLAIMED, 999), 0),
    );
    assert_eq!(expire_all(&t).0, 5);
    let left: Vec<_> = all(&t).iter().map(|v| v.client.port()).collect();
    assert_eq!(left, [0, 1, 2, 3, 100, 102]);
    assert_eq!(
        t.half_open.buckets.read(0).0[3].meta,
        meta(flags::CLAIMED, 999)
    );
    assert_eq!(expire_all(&t).0, 0);
}

#[test]
fn expiry_goes_on_where_it_stopped() {
    let t = tables();
    for bucket in 0..4 {
        put(&t.flows4, bucket, flow4(1, 10, meta(0, 999)));
        put(
            &t.flows6,
            bucket,
            flow6("2001:db8::1", 1, 10, meta(0, 999), 0),
        );
        put(
            &t.half_open,
            bucket,
            flow6(CLIENT, 1, 10, meta(0, 0), born(99)),
        );
    }
    let mut cursor = Cursor::default();
    let mut removed = Vec::new();
    loop {
        let done = expire(&t, &TIMEOUTS, NOW, &mut cursor, 16);
        removed.push(done.flows);
        if done.finished {
            break;
        }
        assert!(removed.len() < 20, "{removed:?}");
    }
    assert_eq!(removed[..6], [2; 6]);
    assert_eq!(removed.iter().sum::<u32>(), 12);
    assert_eq!(cursor, Cursor::default());
}

/// An IPv4 flow with a port of snat address 2, in the right bucket.
fn put_translated(t: &Tables, port: u16, snat_port: u16, meta: Meta) {
    let entry = Flow4 {
        snat_port: Be16::new(snat_port),
        ..flow4(port, 10, meta)
    };
    let hash = hash::client(&entry.client(), entry.port(), 99);
    put(&t.flows4, hash::second_bucket(hash, 3), entry);
}

fn put_port(t: &Tables, slot: u32, snat_port: u16, client_port: u16, idle: u64) {
    t.snat_addresses.write(
        slot,
        SnatAddress {
            addr: Addr::from("192.0.2.9".parse::<IpAddr>().unwrap()),
            ..SnatAddress::default()
        },
    );
    t.snat_ports.write(
        slot * SNAT_PORTS + u32::from(snat_port),
        SnatPort {
            meta: meta(0, idle),
            client: Addr::from(CLIENT.parse::<IpAddr>().unwrap()),
            port: Be16::new(client_port),
            frontend: 10,
            ..SnatPort::default()
        },
    );
}

fn is_taken(t: &Tables, slot: u32, port: u16) -> bool {
    t.snat_ports.read(slot * SNAT_PORTS + u32::from(port)).meta != Meta::FREE
}

const SNAT2: u16 = flags::SNAT | 2 << flags::SNAT_SLOT_SHIFT;

#[test]
fn ports_live_as_long_as_their_flows() {
    let t = tables();
    put_translated(&t, 1, 4001, meta(SNAT2, 50));
    put_port(&t, 2, 4001, 1, 50);
    // Closed, and rested.
    put_translated(&t, 2, 4002, meta(SNAT2 | flags::RESET, 4));
    put_port(&t, 2, 4002, 2, 50);
    // Closed just now.
    put_translated(&t, 3, 4003, meta(SNAT2 | flags::RESET, 0));
    put_port(&t, 2, 4003, 3, 50);
    // The flow has another port by now.
    put_port(&t, 2, 4004, 1, 50);
    // No flow; taken just now, so it may still come.
    put_port(&t, 2, 4005, 5, 0);
    // No flow.
    put_port(&t, 2, 65_535, 6, 3);
    // A half-open flow has it.
    let entry = Flow6 {
        snat_port: Be16::new(4007),
        ..flow6(CLIENT, 7, 10, meta(SNAT2, 0), born(0))
    };
    let hash = hash::client(&entry.client(), entry.port(), 99);
    put(&t.half_open, hash::first_bucket(hash, 3), entry);
    put_port(&t, 2, 4007, 7, 50);
    assert_eq!(expire_all(&t), (0, 3));
    let taken: Vec<_> = [4001, 4002, 4003, 4004, 4005, 65_535, 4007]
        .map(|port| is_taken(&t, 2, port))
        .into();
    assert_eq!(taken, [true, false, true, false, true, false, true]);
}

#[test]
fn a_flow_that_expires_frees_its_port_and_no_other() {
    let t = tables();
    put_translated(&t, 1, 4001, meta(SNAT2, 999));
    put_port(&t, 2, 4001, 1, 0);
    // The port that this one had belongs to another client now.
    put_translated(&t, 2, 4002, meta(SNAT2, 999));
    put_port(&t, 2, 4002, 3, 0);
    assert_eq!(expire_all(&t), (2, 0));
    assert!(!is_taken(&t, 2, 4001));
    assert!(is_taken(&t, 2, 4002));
}

#[test]
fn purges_by_backend_frontend_and_snat_address() {
    let t = tables();
    let of2 = Meta::new(2, 8, flags::VALID, seen(0));
    put(&t.flows4, 0, flow4(1, 10, meta(0, 0)));
    put(&t.flows4, 0, flow4(2, 10, of2));
    put(&t.flows6, 1, flow6("2001:db8::1", 3, 11, of2, 0));
    put(
        &t.half_open,
        3,
        flow6(CLIENT, 4, 11, meta(flags::RESET, 0), 0),
    );
    put_translated(
        &t,
        5,
        4005,
        Meta::new(3, 255, flags::VALID | SNAT2, seen(0)),
    );
    put_port(&t, 2, 4005, 5, 0);
    put_port(&t, 3, 4006, 6, 0);
    let ports = || all(&t).iter().map(|v| v.client.port()).collect::<Vec<_>>();
    assert_eq!(purge_backend(&t, 9), 0);
    assert_eq!(purge_backend(&t, 1), 2);
    assert_eq!(ports(), [2, 5, 3]);
    // Backend 1 had them by the owner's word.
    assert!(!is_taken(&t, 2, 4005) && !is_taken(&t, 3, 4006));
    put_port(&t, 3, 4006, 6, 0);
    assert_eq!(purge_frontend(&t, 11), 1);
    assert!(is_taken(&t, 3, 4006));
    assert_eq!(purge(&t, &[], &[], &[2, 3]), 1);
    assert!(!is_taken(&t, 3, 4006));
    assert_eq!(ports(), [2]);
}

#[test]
fn each_unanswered_syn_is_counted_once() {
    let t = tables();
    let start = NOW;
    let at = |ms: u64| start + ms * 1_000_000;
    let born = |ms: u64| (at(ms) >> BORN_SHIFT) as u32;
    let of = |backend, generation, more| Meta::new(backend, generation, flags::VALID | more, 0);
    for (i, (meta, born)) in [
        (of(1, 7, 0), born(0)),
        (of(1, 7, 0), born(500)),
        (of(2, 8, 0), born(100)),
        (of(3, 255, 0), born(0)),
        // Answered, refused, not TCP, of an earlier owner.
        (of(1, 7, flags::ANSWERED), born(0)),
        (of(1, 7, flags::RESET), born(0)),
        (of(1, 7, flags::UDP), born(0)),
        (of(1, 6, 0), born(0)),
    ]
    .into_iter()
    .enumerate()
    {
        put(&t.half_open, 0, flow6(CLIENT, i as u16, 1, meta, born));
    }
    let threshold = |slot| match slot {
        1 => Some(Duration::from_millis(300)),
        2 => Some(Duration::from_millis(1000)),
        _ => None,
    };
    let scan = |from, to| -> Vec<_> {
        unanswered(&t, threshold, at(from), at(to))
            .iter()
            .map(|u| (u.backend, u.syns))
            .collect()
    };
    assert_eq!(scan(0, 250), []);
    assert_eq!(scan(250, 350), [(1, 1)]);
    assert_eq!(scan(350, 700), []);
    assert_eq!(scan(700, 1200), [(1, 1), (2, 1)]);
    assert_eq!(scan(1200, 9000), []);
    assert_eq!(scan(0, 9000), [(1, 2), (2, 1)]);
    // However the time is cut, the sum is the same.
    for step in [7, 50, 333] {
        let sum: u32 = (0..2000 / step)
            .flat_map(|i| scan(i * step, (i + 1) * step))
            .map(|(_, syns)| syns)
            .sum();
        assert_eq!(sum, 3, "in steps of {step} ms");
    }
}

#[test]
fn a_purge_and_a_scan_beside_a_writer_see_whole_entries() {
    use std::sync::atomic::AtomicBool;
    let t = tables();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Client port, frontend and time of an entry always agree.
            let place = Place::new(&t.flows4, 0, 0);
            let word = |offset| place.at(offset);
            for n in 0..20_000u32 {
                let n = (n % 1000) as u16;
                let entry = flow4(n, n, Meta::new(1, 7, flags::VALID, u32::from(n)));
                word(Flow4::META).store(entry.meta.with_flags(flags::CLAIMED).0, Ordering::SeqCst);
                word(Flow4::KEY).store(entry.key, Ordering::SeqCst);
                word(Flow4::META).store(entry.meta.0, Ordering::SeqCst);
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            each(&t.flows4, |entry: Flow4| {
                assert_eq!(entry.frontend(), entry.port().host());
                assert_eq!(u32::from(entry.frontend()), entry.meta.seen());
            });
        }
    });
    assert_eq!(purge_backend(&t, 1), 1);
    assert!(all(&t).is_empty());
}

#[test]
fn what_a_killed_agent_had_claimed_is_freed() {
    let t = tables();
    put(&t.flows6, 2, flow6(CLIENT, 1, 10, meta(0, 0), 0));
    put(&t.flows6, 2, flow6(CLIENT, 2, 10, Meta::AGENT, 0));
    put(&t.flows6, 2, flow6(CLIENT, 3, 10, Meta::PROGRAM, 0));
    let tag = |entry: usize| t.flows6.tags.read(2).0[entry] != 0;
    assert_eq!(recover(&t), 1);
    let bucket = t.flows6.buckets.read(2);
    assert_eq!(bucket.0[1].meta, Meta::FREE);
    assert_eq!(bucket.0[2].meta, Meta::PROGRAM);
    assert_eq!([tag(0), tag(1), tag(2)], [true, false, true]);
    assert_eq!(recover(&t), 0);
}
