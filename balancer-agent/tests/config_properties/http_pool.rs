//! Whatever a pool can say for requests.

use std::time::Duration;

use balancer_agent::model::http::*;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::files;
use super::http::{DAY, ms, response, text};

/// What a pool says for requests.
pub fn pool() -> impl Strategy<Value = PoolHttp> {
    let balance = select(vec![
        HttpBalance::RoundRobin,
        HttpBalance::LeastConnections,
        HttpBalance::PowerOfTwo,
        HttpBalance::Source,
    ]);
    let queue = (0..=1_000_000usize, ms(1..=3_600_000))
        .prop_map(|(length, timeout)| Queue { length, timeout });
    let retries = (0..=10u32, 0..=100u32, any::<bool>(), any::<[bool; 3]>()).prop_map(
        |(attempts, budget_percent, non_idempotent, on_status)| Retries {
            attempts,
            budget_percent,
            non_idempotent,
            on_status,
        },
    );
    let observe = (1..=1_000u32, any::<bool>(), 10..=DAY, 10..=DAY).prop_map(
        |(failures, status, first, second)| Observe {
            failures,
            status,
            ejection: Duration::from_millis(first.min(second)),
            max_ejection: Duration::from_millis(first.max(second)),
        },
    );
    let day = || ms(1..=DAY);
    let timeouts = (
        ms(1..=3_600_000),
        day(),
        day(),
        option::of(day()),
        ms(1_000..=30 * DAY),
        day(),
    )
        .prop_map(
            |(connect, response, idle, request, tunnel, keep_alive)| BackendTimeouts {
                connect,
                response,
                idle,
                request,
                tunnel,
                keep_alive,
            },
        );
    let http = select(vec![BackendProtocol::Http1, BackendProtocol::Http2]);
    let d = PoolHttp::default().ajp;
    // Without AJP13 nothing is said of it.
    let protocol = prop_oneof![
        http.prop_map(move |http| (http, d.clone())),
        ajp().prop_map(|ajp| (BackendProtocol::Ajp, ajp)),
    ];
    let proxy = option::of(select(vec![ProxyVersion::V1, ProxyVersion::V2]));
    let page = response().prop_map(|(status, content_type, body)| MaintenancePage {
        status,
        content_type,
        body,
    });
    let slow_start = prop_oneof![Just(Duration::ZERO), ms(1..=3_600_000)];
    let custom = (
        balance,
        option::of(sticky()),
        (queue, retries, option::of(observe)),
        0..=100u8,
        slow_start,
        protocol,
        option::of(backend_tls()),
        proxy,
        timeouts,
        0..=65_536usize,
        option::of(page),
    )
        .prop_map(
            |(
                balance,
                sticky,
                rest,
                panic_threshold,
                slow_start,
                (protocol, ajp),
                tls,
                proxy,
                timeouts,
                kept,
                page,
            )| {
                let http = protocol != BackendProtocol::Ajp;
                PoolHttp {
                    sessions: None,
                    balance,
                    sticky,
                    queue: rest.0,
                    retries: rest.1,
                    observe: rest.2,
                    panic_threshold,
                    slow_start,
                    protocol,
                    ajp,
                    tls: tls.filter(|_| http),
                    send_proxy: proxy.filter(|_| http),
                    timeouts,
                    keep_alive_connections: kept,
                    maintenance: page,
                }
            },
        );
    prop_oneof![1 => Just(PoolHttp::default()), 3 => custom]
}

fn ajp() -> impl Strategy<Value = Ajp> {
    let secret = option::of("[ -~]{1,20}").prop_map(|text| text.map(|text| Secret(text.into())));
    let reuse = prop_oneof![Just(Duration::ZERO), ms(1..=DAY)];
    let ping = (any::<bool>(), option::of(reuse), ms(1..=60_000));
    let ping = ping.prop_map(|(connect, reuse, timeout)| Ping {
        connect,
        reuse,
        timeout,
    });
    let size = PACKET_LEAST..=PACKET_MOST;
    (secret, size, ping).prop_map(|(secret, packet_size, ping)| Ajp {
        secret,
        packet_size,
        ping,
    })
}

fn backend_tls() -> impl Strategy<Value = BackendTls> {
    let verify = select(vec![
        Verify::System,
        Verify::Off,
        Verify::Authorities(files::path("authorities.pem")),
    ]);
    let name = option::of(select(vec!["app.example.org", "10.0.0.1", "2001:db8::1"]));
    let pair = option::of(Just(CertificateFiles {
        certificate: files::path("0.pem"),
        key: files::path("0.key"),
    }));
    (verify, name, pair).prop_map(|(verify, name, certificate)| BackendTls {
        verify,
        server_name: name.map(Into::into),
        certificate,
    })
}

fn sticky() -> impl Strategy<Value = Sticky> {
    let name = || text("[A-Za-z][A-Za-z0-9_.!-]{0,10}");
    let route = (name(), text("([A-Za-z0-9_.~-]{1,10})?"), any::<bool>()).prop_map(
        |(cookie, parameter, force)| {
            Sticky::Route(StickyRoute {
                cookie,
                parameter,
                force,
            })
        },
    );
    let learn = (name(), ms(1_000..=30 * DAY), any::<bool>()).prop_map(|(cookie, idle, force)| {
        Sticky::Learn(StickyLearn {
            cookie,
            idle,
            force,
        })
    });
    let source = (1..=32u8, 1..=128u8).prop_map(|(ipv4_prefix, ipv6_prefix)| Sticky::Source {
        ipv4_prefix,
        ipv6_prefix,
    });
    let cookie = (name(), any::<bool>(), attributes(), any::<bool>()).prop_map(
        |(name, opaque, attributes, force)| {
            let key = files::COOKIE_KEY.as_slice().into();
            Sticky::Cookie(StickyCookie {
                name,
                value: match opaque {
                    true => CookieValue::Opaque(key),
                    false => CookieValue::Signed(key),
                },
                attributes,
                force,
            })
        },
    );
    let default = Just(Sticky::Route(StickyRoute::default()));
    prop_oneof![default, route, learn, source, cookie]
}

fn attributes() -> impl Strategy<Value = CookieAttributes> {
    let same_site = option::of(select(vec![
        SameSite::Lax,
        SameSite::Strict,
        SameSite::None,
    ]));
    let age = option::of((1..=400 * 86_400u64).prop_map(Duration::from_secs));
    let domain = option::of(text("[a-z]{1,5}\\.example"));
    let custom = (
        text("/[a-z/]{0,6}"),
        domain,
        age,
        any::<[bool; 3]>(),
        same_site,
    )
        .prop_map(
            |(path, domain, max_age, [secure, http_only, partitioned], same_site)| {
                CookieAttributes {
                    path,
                    domain,
                    max_age,
                    // Browsers ask for it.
                    secure: secure || partitioned || same_site == Some(SameSite::None),
                    http_only,
                    same_site,
                    partitioned,
                }
            },
        );
    prop_oneof![Just(CookieAttributes::default()), custom]
}
