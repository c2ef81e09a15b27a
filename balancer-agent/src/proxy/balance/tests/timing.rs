//! What a request costs here. Not a test of anything: `cargo test --release -p
//! balancer-agent --lib what_a_request_costs -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};

use super::super::testing::Spec;
use super::*;
use crate::model::http::{
    CookieAttributes, CookieValue, HttpBalance, Sticky, StickyCookie, StickyLearn, StickyRoute,
};
use crate::proxy::route::NormalPath;
use crate::proxy::sticky;

const SPEC: &str = "s1:w=2 s2 s3 s4:max=1000";

fn sticky_with(sticky: Option<Sticky>) -> PoolHttp {
    PoolHttp { sticky, ..http() }
}

fn cookie(value: CookieValue) -> Option<Sticky> {
    Some(Sticky::Cookie(StickyCookie {
        name: "lb".into(),
        value,
        attributes: CookieAttributes {
            path: "/".into(),
            domain: None,
            max_age: None,
            secure: false,
            http_only: true,
            same_site: None,
            partitioned: false,
        },
        force: false,
    }))
}

/// Nanoseconds for one request, on each of `threads` at once.
fn nanoseconds(view: &Arc<PoolView>, headers: &HeaderMap, threads: usize) -> f64 {
    const ROUNDS: u32 = 400_000;
    let one = || {
        let path = NormalPath::parse("/shop/cart").unwrap();
        let empty = http::Response::new(()).into_parts().0;
        let since = Instant::now();
        for _ in 0..ROUNDS {
            let affinity = sticky::read(view, black_box(headers), &path, client(9));
            let lease = bound(view, &affinity, &[]).unwrap();
            black_box(lease.index());
            lease.report(Outcome::Answered(200));
            drop(lease);
        }
        drop(empty);
        since.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|t| t.join().unwrap()).sum::<f64>() / threads as f64
    })
}

#[test]
#[ignore = "a measurement"]
fn what_a_request_costs() {
    let route = Some(Sticky::Route(StickyRoute {
        cookie: "JSESSIONID".into(),
        parameter: "jsessionid".into(),
        force: false,
    }));
    let learn = Some(Sticky::Learn(StickyLearn {
        cookie: "PHPSESSID".into(),
        idle: Duration::from_secs(600),
        force: false,
    }));
    let source = Some(Sticky::Source {
        ipv4_prefix: 24,
        ipv6_prefix: 64,
    });
    let policy = |balance| PoolHttp { balance, ..http() };
    let key: Arc<[u8]> = [7u8; 32][..].into();
    let others = "theme=dark; lang=en; _ga=GA1.1.1234567890.1234567890";
    let cases = [
        ("round robin", policy(HttpBalance::RoundRobin)),
        ("least connections", policy(HttpBalance::LeastConnections)),
        ("power of two", policy(HttpBalance::PowerOfTwo)),
        ("source policy", policy(HttpBalance::Source)),
        ("route, no cookie", sticky_with(route.clone())),
        ("route, cookie", sticky_with(route)),
        ("learn, cookie", sticky_with(learn)),
        ("source", sticky_with(source)),
        (
            "signed",
            sticky_with(cookie(CookieValue::Signed(Arc::clone(&key)))),
        ),
        ("opaque", sticky_with(cookie(CookieValue::Opaque(key)))),
    ];
    for (name, http) in cases {
        let view = Spec(SPEC).view(http);
        let mut headers = HeaderMap::new();
        let mut sent = others.to_owned();
        if name.ends_with(" cookie") && !name.contains("no ") {
            sent.push_str(
                "; JSESSIONID=0A1B2C3D4E5F60718293A4B5C6D7E8F9.s2; PHPSESSID=abcdef0123456789",
            );
        }
        let mut response = http::Response::new(()).into_parts().0;
        response.headers.insert(
            SET_COOKIE,
            HeaderValue::from_static("PHPSESSID=abcdef0123456789"),
        );
        sticky::rewrite_response(&view, &Affinity::default(), 1, false, &mut response);
        if let Some(own) = response.headers.get_all(SET_COOKIE).iter().find_map(|f| {
            let f = f.to_str().ok()?;
            f.starts_with("lb=").then(|| f.split(';').next())?
        }) {
            sent = format!("{sent}; {own}");
        }
        headers.insert(COOKIE, HeaderValue::from_str(&sent).unwrap());
        let (alone, two) = (
            nanoseconds(&view, &headers, 1),
            nanoseconds(&view, &headers, 2),
        );
        println!("{name:20} {alone:7.1} ns alone, {two:7.1} ns on each of two threads");
    }
}
