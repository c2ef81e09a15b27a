//! Any valid web tier, and what backends say for it; pools are in `http_pool`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, StatusCode};
use balancer_agent::model::http::*;
use balancer_agent::model::{Backend, Pool, Protocol};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::files;

/// The pools that only HTTP frontends use.
pub const POOLS: [&str; 3] = ["web-0", "web-1", "web-2"];
pub const DAY: u64 = 86_400_000;

pub fn ms(range: RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

pub fn text(pattern: &'static str) -> impl Strategy<Value = Box<str>> {
    pattern.prop_map(Box::from)
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    "([!-~]([ -~]{0,12}[!-~])?)?".prop_map(|text| HeaderValue::from_str(&text).unwrap())
}

fn content_type() -> impl Strategy<Value = HeaderValue> {
    "[a-z]{1,5}/[a-z+.-]{1,8}(; charset=utf-8)?"
        .prop_map(|text| HeaderValue::from_str(&text).unwrap())
}

/// A web tier whose pools have the addresses and names that go together.
pub fn http(
    pools: impl Strategy<Value = Vec<(bool, Vec<Protocol>, Pool)>>,
) -> impl Strategy<Value = (Http, Vec<Pool>)> {
    let numbers = (
        1..=1_024usize,
        1_000..=100_000_000usize,
        1..=10_000_000usize,
        ms(100..=DAY),
    );
    (numbers, vec(frontend(), 0..3), pools).prop_map(|(numbers, frontends, drafts)| {
        let mut frontends: Vec<HttpFrontend> = frontends;
        // With this one every pool is used.
        if !frontends.is_empty() {
            frontends.push(everything());
        }
        for (i, frontend) in frontends.iter_mut().enumerate() {
            frontend.name = format!("http.{i}").into();
            frontend.address.set_port(1_000 + i as u16);
        }
        let pools = match frontends.is_empty() {
            true => Vec::new(),
            false => drafts.into_iter().enumerate().map(web_pool).collect(),
        };
        let (threads, learned_max, max_connections, drain_timeout) = numbers;
        let http = Http {
            threads,
            pin_threads: learned_max % 2 == 0,
            learned_max,
            max_connections,
            drain_timeout,
            frontends: frontends.into_iter().map(Arc::new).collect(),
        };
        (http, pools)
    })
}

/// A pool that the agent connects to: of both families, loopback included.
fn web_pool((i, (_, _, mut pool)): (usize, (bool, Vec<Protocol>, Pool))) -> Pool {
    pool.name = POOLS[i].into();
    pool.snat.clear();
    pool.snat_ports = (10_000, 32_767);
    for (j, backend) in pool.backends.iter_mut().enumerate() {
        rename(backend, format!("b{j}").into());
        let ip: IpAddr = match j % 2 {
            0 => Ipv4Addr::new(127, 0, i as u8, j as u8 + 1).into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, i as u16, j as u16).into(),
        };
        backend.address = SocketAddr::new(ip, 8_000);
    }
    pool
}

/// Names a backend. One without a route of its own has its name as such.
pub fn rename(backend: &mut Backend, name: Arc<str>) {
    if backend.http.route.is_empty() {
        backend.http.route = Arc::clone(&name);
    }
    backend.name = name;
}

/// Gives backends routes that differ, and `redirect`s that lead to others.
pub fn redirect(backends: &mut [Backend]) {
    let count = backends.len();
    let route = |backend: &Backend, i: usize| match backend.http.route.is_empty() {
        true => format!("b{i}"),
        false => format!("{}~{i}", backend.http.route),
    };
    let routes: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(i, b)| route(b, i))
        .collect();
    for (i, backend) in backends.iter_mut().enumerate() {
        backend.http.route = match backend.http.route.is_empty() {
            true => Arc::default(),
            false => routes[i].as_str().into(),
        };
        backend.http.redirect = match &backend.http.redirect {
            Some(_) if count > 1 => Some(routes[(i + 1) % count].as_str().into()),
            _ => None,
        };
    }
}

/// What a backend says; [`redirect`] and [`rename`] make it fit.
pub fn backend() -> impl Strategy<Value = BackendHttp> {
    (
        prop_oneof![Just(String::new()), "[A-Za-z0-9_~.-]{1,20}"],
        option::of("[A-Za-z0-9_~-]{1,20}"),
        option::of(Just(())),
        any::<u8>(),
        option::of(1..=1_000_000u32),
        // No backend listens there; taken back in pools that do not speak AJP13.
        (option::of(1..=9u16), option::of("[ -~]{1,20}")),
    )
        .prop_map(
            |(route, domain, redirect, priority, max_connections, ajp)| BackendHttp {
                route: route.into(),
                domain: domain.map(Into::into),
                redirect: redirect.map(|()| Arc::default()),
                priority,
                max_connections,
                http_port: ajp.0,
                secret: ajp.1.map(|text| Secret(text.into())),
            },
        )
}

/// A frontend for every host, short enough for the short form.
fn everything() -> HttpFrontend {
    let mount = |(i, pool): (usize, &&str)| Mount {
        pattern: format!("/{i}/*").into(),
        route: Arc::new(Route {
            action: Action::Pool((*pool).into()),
            rewrite: Rewrite::default(),
            compress: None,
        }),
    };
    HttpFrontend {
        name: Arc::default(),
        address: (Ipv4Addr::UNSPECIFIED, 1).into(),
        tls: None,
        versions: Versions::default(),
        proxy_protocol_from: Vec::new(),
        trusted_proxies: Vec::new(),
        forwarded: Forwarded::default(),
        via: None,
        request_id: None,
        hsts: None,
        redirect_https: None,
        limits: Limits::default(),
        timeouts: ClientTimeouts::default(),
        log: None,
        sites: vec![Arc::new(Site {
            hosts: Vec::new(),
            mounts: POOLS.iter().enumerate().map(mount).map(Arc::new).collect(),
            exclusions: Vec::new(),
            fallback: None,
        })],
    }
}

fn frontend() -> impl Strategy<Value = HttpFrontend> {
    let address = select(vec![
        SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        (Ipv4Addr::UNSPECIFIED, 1).into(),
        (Ipv4Addr::new(192, 0, 2, 1), 1).into(),
        (Ipv6Addr::LOCALHOST, 1).into(),
        (Ipv6Addr::UNSPECIFIED, 1).into(),
    ]);
    let versions = select(vec![(true, true), (true, false), (false, true)]);
    let networks = || {
        let all = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::/0"];
        subsequence(all.map(|n| n.parse().unwrap()).to_vec(), 0..=3)
    };
    let tokens = (
        option::of("[a-z0-9!.-]{1,12}"),
        option::of(select(vec!["x-request-id", "traceparent"])),
    );
    let secure = (
        option::of(tls()),
        option::of(select(vec![
            "max-age=0",
            "max-age=31536000; includeSubDomains; preload",
        ])),
        option::of(1..=u16::MAX),
    );
    let log = option::of((
        "/[a-z]{1,8}\\.log",
        select(vec![
            LogFormat::Common,
            LogFormat::Combined,
            LogFormat::Json,
        ]),
        any::<bool>(),
    ));
    (
        address,
        versions,
        (networks(), networks()),
        any::<(bool, bool)>(),
        tokens,
        secure,
        limits(),
        timeouts(),
        log,
        vec(site(), 1..4),
    )
        .prop_map(
            |(
                address,
                versions,
                networks,
                forwarded,
                tokens,
                secure,
                limits,
                timeouts,
                log,
                sites,
            )| {
                let (tls, hsts, redirect) = secure;
                // A redirect to HTTPS is all that a frontend does.
                let redirect_https = redirect.filter(|_| tls.is_none());
                let sites = match redirect_https {
                    Some(_) => Vec::new(),
                    None => hosts(sites),
                };
                HttpFrontend {
                    name: Arc::default(),
                    address,
                    versions: Versions {
                        http1: versions.0,
                        http2: versions.1,
                    },
                    proxy_protocol_from: networks.0,
                    trusted_proxies: networks.1,
                    forwarded: Forwarded {
                        x_forwarded: forwarded.0,
                        rfc7239: forwarded.1,
                    },
                    via: tokens.0.map(Into::into),
                    request_id: tokens.1.map(HeaderName::from_static),
                    hsts: hsts.filter(|_| tls.is_some()).map(HeaderValue::from_static),
                    tls,
                    redirect_https,
                    limits,
                    timeouts,
                    log: log.map(|(file, format, details)| AccessLog {
                        file: file.into(),
                        format,
                        details,
                    }),
                    sites,
                }
            },
        )
}

fn tls() -> impl Strategy<Value = Tls> {
    let pair = |i: usize| CertificateFiles {
        certificate: files::path(&format!("{i}.pem")),
        key: files::path(&format!("{i}.key")),
    };
    let authorities = files::path("authorities.pem");
    let auth = select(vec![
        ClientAuth::Off,
        ClientAuth::Optional(authorities.clone()),
        ClientAuth::Required(authorities),
    ]);
    let pairs: Vec<_> = (0..files::PAIRS).map(pair).collect();
    let minimum = select(vec![TlsVersion::V1_2, TlsVersion::V1_3]);
    (subsequence(pairs, 1..=files::PAIRS), minimum, auth).prop_map(
        |(certificates, minimum, client_auth)| Tls {
            certificates,
            minimum,
            client_auth,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let off = || option::of(1..=1_000_000_000u32);
    let large = || option::of(1..=1u64 << 60);
    let custom = (
        (1..=10_000usize, 1_024..=1usize << 20, 0..=100usize),
        large(),
        1..=10_000_000usize,
        (off(), off(), large()),
        (1..=10_000u32, 1..=1_000_000usize),
    )
        .prop_map(|(head, body_bytes, connections, sources, h2)| Limits {
            headers: head.0,
            head_bytes: head.1,
            target_bytes: (head.1 * head.2 / 100).max(256),
            body_bytes,
            connections,
            connections_per_source: sources.0,
            requests_per_source: sources.1,
            requests_per_connection: sources.2,
            h2_streams: h2.0,
            h2_resets: h2.1,
        });
    prop_oneof![Just(Limits::default()), custom]
}

fn timeouts() -> impl Strategy<Value = ClientTimeouts> {
    let time = || ms(100..=DAY);
    let rate = option::of(1..=1u64 << 30);
    let custom = (time(), time(), time(), time(), rate, time()).prop_map(
        |(handshake, headers, keep_alive, body_idle, body_rate, send)| ClientTimeouts {
            handshake,
            headers,
            keep_alive,
            body_idle,
            body_rate,
            send,
        },
    );
    prop_oneof![Just(ClientTimeouts::default()), custom]
}

/// Gives the sites of a frontend hosts that differ; the last may be for all.
fn hosts(sites: Vec<(Vec<bool>, Site)>) -> Vec<Arc<Site>> {
    let last = sites.len() - 1;
    sites
        .into_iter()
        .enumerate()
        .map(|(i, (wildcards, mut site))| {
            let count = match (i == last, wildcards.len()) {
                (false, 0) => vec![false],
                _ => wildcards,
            };
            site.hosts = count
                .into_iter()
                .enumerate()
                .map(|(j, wildcard)| match wildcard {
                    true => HostPattern::Suffix(format!(".h{i}-{j}.example.org").into()),
                    false if j == 2 => HostPattern::Exact(format!("[2001:db8::{}]", i + 1).into()),
                    false => HostPattern::Exact(format!("h{i}-{j}.example.org").into()),
                })
                .collect();
            Arc::new(site)
        })
        .collect()
}

fn site() -> impl Strategy<Value = (Vec<bool>, Site)> {
    // No hexadecimal digits, which would encode something after a `%`.
    let pattern = || "[g-z*? %\u{e9}.~-]{0,6}(/[a-z*]{1,4}){0,2}/?";
    let mounts = vec((pattern(), route()), 0..4);
    let exclusions = vec((pattern(), option::of(select(POOLS.to_vec()))), 0..3);
    (
        vec(any::<bool>(), 0..4),
        mounts,
        exclusions,
        option::of(route()),
    )
        .prop_map(|(wildcards, mounts, exclusions, fallback)| {
            let nothing = mounts.is_empty() && fallback.is_none();
            let mut mounts: Vec<Arc<Mount>> = mounts
                .into_iter()
                .enumerate()
                .map(|(i, (pattern, route))| {
                    // The number keeps them apart.
                    let pattern = format!("/{i}{pattern}").into();
                    Arc::new(Mount { pattern, route })
                })
                .collect();
            if nothing {
                mounts = vec![Arc::new(Mount {
                    pattern: "/*".into(),
                    route: Arc::new(Route {
                        action: Action::Pool(POOLS[0].into()),
                        rewrite: Rewrite::default(),
                        compress: None,
                    }),
                })];
            }
            let exclusions = exclusions
                .into_iter()
                .enumerate()
                .map(|(i, (pattern, pool))| Exclusion {
                    pattern: format!("/{i}{pattern}").into(),
                    pool: pool.map(Into::into),
                })
                .collect();
            let site = Site {
                hosts: Vec::new(),
                mounts,
                exclusions,
                fallback,
            };
            (wildcards, site)
        })
}

fn route() -> impl Strategy<Value = Arc<Route>> {
    let pool = select(POOLS.to_vec()).prop_map(|pool| Action::Pool(pool.into()));
    let files = (
        "/[a-z/]{0,8}",
        prop_oneof![
            Just(vec!["index.html".into()]),
            vec(text("[a-z][a-z.]{0,6}"), 0..3)
        ],
        any::<bool>(),
        option::of(header_value()),
    )
        .prop_map(|(root, index, precompressed, cache_control)| {
            Action::Files(Files {
                root: root.into(),
                index,
                precompressed,
                cache_control,
            })
        });
    let locations = [
        "https://{host}{path}{query}",
        "http://www.example.org:8080/a%20b?c#d",
        "{path}/",
        "/new{path}{query}",
    ];
    let redirect = (
        select(vec![301, 302, 303, 307, 308]),
        select(locations.to_vec()),
    )
        .prop_map(|(status, location)| Action::Redirect {
            status: StatusCode::from_u16(status).unwrap(),
            location: location.into(),
        });
    let respond = response().prop_map(|(status, content_type, body)| Action::Respond {
        status,
        content_type,
        body,
    });
    let nets = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "192.0.2.7/32"];
    let nets = nets.map(|net| net.parse().unwrap()).to_vec();
    let format = select(vec![StatsFormat::HaproxyCsv, StatsFormat::JkStatus]);
    let stats = (format, subsequence(nets, 0..=4))
        .prop_map(|(format, allow)| Action::Stats(Stats { format, allow }));
    let action = prop_oneof![3 => pool, 1 => files, 1 => redirect, 1 => respond, 1 => stats];
    let compress = option::of(prop_oneof![
        Just(Compress::default()),
        (1..=1u64 << 30).prop_map(|min_bytes| Compress { min_bytes }),
    ]);
    let rewrite = prop_oneof![Just(Rewrite::default()), rewrite()];
    (action, rewrite, compress).prop_map(|(action, rewrite, compress)| {
        Arc::new(Route {
            action,
            rewrite,
            compress,
        })
    })
}

/// Status, type and body.
pub fn response() -> impl Strategy<Value = (StatusCode, HeaderValue, Bytes)> {
    let body = prop_oneof![
        "[\\PC\n\t\"]{0,20}",
        // Printed as the file that has it.
        Just(files::PAGE.to_owned()),
    ];
    (200..=599u16, content_type(), body).prop_map(|(status, content_type, body)| {
        let body = match status {
            204 | 205 | 304 => Bytes::new(),
            _ => body.into(),
        };
        (StatusCode::from_u16(status).unwrap(), content_type, body)
    })
}

fn rewrite() -> impl Strategy<Value = Rewrite> {
    let prefix = || option::of(text("(/[a-z][a-z.!~:@-]{0,5}){1,3}"));
    let change = || {
        let names = ["x-a", "server", "set-cookie", "cookie", "authorization"];
        let name = select(names.to_vec()).prop_map(HeaderName::from_static);
        (0..3, name, header_value()).prop_map(|(kind, name, value)| match kind {
            0 => HeaderChange::Set(name, value),
            1 => HeaderChange::Add(name, value),
            _ => HeaderChange::Remove(name),
        })
    };
    let host = option::of("[a-z][a-z0-9.-]{0,10}(:[0-9]{1,4})?");
    (
        prefix(),
        prefix(),
        host,
        vec(change(), 0..3),
        vec(change(), 0..3),
    )
        .prop_map(
            |(strip_prefix, add_prefix, host, request_headers, response_headers)| Rewrite {
                strip_prefix,
                add_prefix,
                host: host.map(|host| HeaderValue::from_str(&host).unwrap()),
                request_headers,
                response_headers,
            },
        )
}
