//! Any valid configuration: the kernel's part, with the web tier's from `http`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use balancer_agent::model::http::{BackendProtocol, HttpBalance, PoolHttp};
use balancer_agent::model::*;
use common::tables::Unavailable;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{http, http_pool};

const DAYS_30: u64 = 30 * 86_400;

pub fn config() -> impl Strategy<Value = Config> {
    let time = |most: u64| (1_000..=most * 1_000).prop_map(Duration::from_millis);
    let timeouts = (
        time(DAYS_30),
        time(DAYS_30),
        time(3_600),
        time(3_600),
        time(DAYS_30),
    );
    let sizes = (
        1_000..=100_000_000u32,
        1_000..=100_000_000u32,
        1_000..=16_000_000u32,
    );
    let mode = select(vec![XdpMode::Auto, XdpMode::Native, XdpMode::Generic]);
    let pin_dir = option::of("/[ -~]{0,20}".prop_map(Into::into));
    let socket = "/[ -~]{0,20}[a-z]".prop_map(Into::into);
    let pools = vec(pool(), 0..5);
    let web = http::http(vec(pool(), http::POOLS.len()));
    (timeouts, sizes, mode, pin_dir, socket, pools, web).prop_map(
        |(times, (flows_ipv4, flows_ipv6, half_open), mode, pin_dir, socket, drafts, web)| {
            let mut frontends = Vec::new();
            let mut pools = Vec::new();
            for (i, (v6, protocols, mut pool)) in drafts.into_iter().enumerate() {
                pool.name = format!("pool-{i}").into();
                // The kernel has no other.
                pool.http = Arc::new(PoolHttp {
                    balance: HttpBalance::RoundRobin,
                    ..(*pool.http).clone()
                });
                for (j, b) in pool.backends.iter_mut().enumerate() {
                    http::rename(b, format!("b{j}").into());
                    b.address = SocketAddr::new(ip(v6, 1, i, j), 8_000 + j as u16);
                }
                let count = pool.snat.len();
                pool.snat = (0..count).map(|j| ip(v6, 2, i, j)).collect();
                if count == 0 {
                    pool.snat_ports = (10_000, 32_767);
                }
                if !protocols.is_empty()
                    && protocols.iter().all(|p| *p == Protocol::Udp)
                    && pool.check.kind != CheckKind::None
                {
                    pool.check.port.get_or_insert(53);
                }
                pool.check.as_requests &= protocols.is_empty();
                for (j, protocol) in protocols.into_iter().enumerate() {
                    frontends.push(Frontend {
                        name: format!("front.{i}_{j}").into(),
                        address: SocketAddr::new(ip(v6, 3, i, j), 80),
                        protocol,
                        pool: Arc::clone(&pool.name),
                    });
                }
                pools.push(Arc::new(pool));
            }
            let (http, web) = web;
            pools.extend(web.into_iter().map(Arc::new));
            Config {
                sessions: None,
                cluster: None,
                http,
                xdp: Xdp {
                    interfaces: vec!["eth0".into(), "br-lan.7".into()],
                    mode,
                    flows_ipv4,
                    flows_ipv6,
                    half_open,
                    pin_dir,
                },
                admin: Admin { socket },
                timeouts: FlowTimeouts {
                    tcp_idle: times.0,
                    udp_idle: times.1,
                    half_open: times.2,
                    closed: times.3,
                    removed: times.4,
                },
                frontends,
                pools,
            }
        },
    )
}

fn ip(v6: bool, net: u8, pool: usize, host: usize) -> IpAddr {
    let host = host as u8 + 1;
    match v6 {
        false => Ipv4Addr::new(10, net, pool as u8, host).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, net.into(), pool as u16, 0, 0, 0, host.into()).into(),
    }
}

/// A pool without names and addresses, its family and its frontends' protocols.
fn pool() -> impl Strategy<Value = (bool, Vec<Protocol>, Pool)> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    let unavailable = select(vec![
        Unavailable::Reset,
        Unavailable::Drop,
        Unavailable::Pass,
    ]);
    let ports = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let passive = (any::<bool>(), option::of(10..=60_000u64));
    let activation = select(vec![
        Activation::Active,
        Activation::Drain,
        Activation::Stopped,
    ]);
    let backend = (0..=256u16, activation).prop_map(|(weight, activation)| Backend {
        name: "".into(),
        address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        weight,
        activation,
        http: Default::default(),
    });
    let backend =
        (backend, http::backend()).prop_map(|(backend, http)| Backend { http, ..backend });
    let family_and_use = (any::<bool>(), vec(protocol, 0..3));
    let backends = vec(backend, 1..5);
    // Two addresses for each of at most four pools are as many as there can be.
    (
        family_and_use,
        0..=2usize,
        ports,
        unavailable,
        check(),
        passive,
        backends,
        http_pool::pool(),
    )
        .prop_map(
            |(
                (v6, protocols),
                snat,
                snat_ports,
                unavailable,
                check,
                passive,
                mut backends,
                http,
            )| {
                http::redirect(&mut backends);
                if http.protocol != BackendProtocol::Ajp {
                    for backend in &mut backends {
                        backend.http.http_port = None;
                        backend.http.secret = None;
                    }
                }
                let mut check = check;
                check.tls &= http.tls.is_some();
                check.tls &= !matches!(check.kind, CheckKind::None | CheckKind::Ajp);
                let pool = Pool {
                    name: "".into(),
                    balance: Balance::RoundRobin,
                    forward: Forward::Nat,
                    snat: vec![Ipv4Addr::UNSPECIFIED.into(); snat],
                    snat_ports,
                    unavailable,
                    check,
                    passive: Passive {
                        refused: passive.0,
                        unanswered: passive.1.map(Duration::from_millis),
                    },
                    backends,
                    http: Arc::new(http),
                };
                (v6, protocols, pool)
            },
        )
}

fn check() -> impl Strategy<Value = Check> {
    let range = (100..=599u16, 100..=599u16).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let http = (
        "/[a-z0-9/?=&._~-]{0,20}",
        option::of("[a-z][a-z0-9.:-]{0,20}"),
        vec(range, 1..4),
    )
        .prop_map(|(path, host, expect)| CheckKind::Http { path, host, expect });
    let kind = prop_oneof![
        Just(CheckKind::None),
        Just(CheckKind::Tcp),
        Just(CheckKind::Ajp),
        http
    ];
    let times = (10..=3_600_000u64, 0..=1_000u64, 1..=3_600_000u64);
    let rows = (1..=100u32, 1..=100u32);
    let port = option::of(1..=u16::MAX);
    (kind, times, rows, port, any::<[bool; 2]>()).prop_map(
        |(kind, (interval, fast, timeout), (fall, rise), port, [default, tls])| {
            let fast = (interval * fast / 1_000).max(10);
            let (fast, timeout) = match default {
                true => default_times(interval),
                false => (fast, timeout),
            };
            Check {
                kind,
                interval: Duration::from_millis(interval),
                fast_interval: Duration::from_millis(fast),
                timeout: Duration::from_millis(timeout),
                fall,
                rise,
                port,
                tls,
                as_requests: port.is_none(),
            }
        },
    )
}

/// `fast_interval` and `timeout` as documented, all in milliseconds.
pub fn default_times(interval: u64) -> (u64, u64) {
    ((interval / 5).max(50).min(interval), interval.min(500))
}
