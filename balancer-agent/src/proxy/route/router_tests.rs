//! Sites, mounts and exclusions together; against a model; and how long a lookup takes.

use std::time::Instant;

use http::StatusCode;
use proptest::prelude::*;

use super::*;
use crate::model::http::{
    ClientTimeouts, Files, Forwarded, HostPattern, Limits, Rewrite, Versions,
};

fn route(action: Action) -> Arc<Route> {
    Arc::new(Route {
        action,
        rewrite: Rewrite::default(),
        compress: None,
    })
}

fn mount(pattern: &str, pool: &str) -> Arc<Mount> {
    Arc::new(Mount {
        pattern: pattern.into(),
        route: route(Action::Pool(pool.into())),
    })
}

fn exclusion(pattern: &str, pool: Option<&str>) -> Exclusion {
    Exclusion {
        pattern: pattern.into(),
        pool: pool.map(Into::into),
    }
}

fn fixed(status: u16) -> Arc<Route> {
    route(Action::Respond {
        status: StatusCode::from_u16(status).unwrap(),
        content_type: http::HeaderValue::from_static("text/plain"),
        body: bytes::Bytes::new(),
    })
}

fn frontend(sites: Vec<Site>) -> HttpFrontend {
    HttpFrontend {
        name: "web".into(),
        address: "127.0.0.1:80".parse().unwrap(),
        tls: None,
        versions: Versions {
            http1: true,
            http2: true,
        },
        proxy_protocol_from: Vec::new(),
        trusted_proxies: Vec::new(),
        forwarded: Forwarded {
            x_forwarded: true,
            rfc7239: false,
        },
        via: None,
        request_id: None,
        hsts: None,
        redirect_https: None,
        limits: Limits::default(),
        timeouts: ClientTimeouts::default(),
        log: None,
        sites: sites.into_iter().map(Arc::new).collect(),
    }
}

/// Where a request goes, in a word.
fn go(router: &Router, host: &str, raw: &str) -> String {
    let path = NormalPath::parse(raw).unwrap();
    match router
        .find(Some(host), &path)
        .route
        .map(|route| &route.action)
    {
        None => "404".to_owned(),
        Some(Action::Pool(pool)) => pool.to_string(),
        Some(Action::Respond { status, .. }) => status.as_str().to_owned(),
        Some(Action::Files(_)) => "files".to_owned(),
        Some(Action::Redirect { .. }) => "redirect".to_owned(),
        Some(Action::Stats(_)) => "stats".to_owned(),
    }
}

#[test]
fn mounts_and_exclusions_decide_as_in_mod_jk() {
    let admin = Site {
        hosts: vec![HostPattern::Exact("admin.example.org".into())],
        mounts: vec![
            mount("/*", "admin"),
            mount("/api/*", "api"),
            mount("/jkstatus", "status"),
        ],
        exclusions: vec![
            exclusion("/images/*", Some("admin")),
            exclusion("/api/docs/*", None),
            exclusion("/api/*.gif", Some("admin")),
            exclusion("/*.css", None),
        ],
        fallback: Some(fixed(299)),
    };
    let user = Site {
        hosts: vec![HostPattern::Suffix(".example.org".into())],
        mounts: vec![mount("/app/*", "user")],
        exclusions: vec![exclusion("/app/static/*", None)],
        fallback: None,
    };
    let router = Router::new(&frontend(vec![admin, user]));
    for (host, raw, expected) in [
        ("admin.example.org", "/", "admin"),
        ("admin.example.org", "/x", "admin"),
        ("admin.example.org", "/api/x", "api"),
        ("admin.example.org", "/api", "admin"),
        ("admin.example.org", "/images", "admin"),
        ("admin.example.org", "/images/", "299"),
        ("admin.example.org", "/images/a.png", "299"),
        // The normalised path is what counts.
        ("admin.example.org", "/x/../images/a.png", "299"),
        ("admin.example.org", "/%69mages/a.png", "299"),
        ("admin.example.org", "/images;x/a.png", "299"),
        ("admin.example.org", "/images/../x", "admin"),
        ("admin.example.org", "/jkstatus;", "status"),
        ("admin.example.org", "//jkstatus", "status"),
        ("admin.example.org", "/jkstatus/", "admin"),
        // An exclusion for one pool leaves the other alone.
        ("admin.example.org", "/api/a.gif", "api"),
        ("admin.example.org", "/api/docs/x", "299"),
        ("admin.example.org", "/api/a.css", "299"),
        ("ADMIN.example.org:80", "/a.css", "299"),
        ("www.example.org", "/app/x", "user"),
        ("www.example.org", "/app", "404"),
        ("www.example.org", "/app/static/x", "404"),
        ("www.example.org", "/", "404"),
        ("other.test", "/app/x", "404"),
    ] {
        assert_eq!(go(&router, host, raw), expected, "{host} {raw}");
    }
}

#[test]
fn what_was_found_is_told() {
    let site = Site {
        hosts: Vec::new(),
        mounts: vec![mount("/a/*", "one")],
        exclusions: vec![exclusion("/x", Some("one")), exclusion("/a/b", Some("one"))],
        fallback: Some(fixed(204)),
    };
    let router = Router::new(&frontend(vec![site]));
    let path = NormalPath::parse("/a/b").unwrap();
    let found = router.find(None, &path);
    assert_eq!(&*found.mount.unwrap().pattern, "/a/*");
    assert_eq!(&*found.exclusion.unwrap().pattern, "/a/b");
    assert!(found.site.is_some() && found.documents.is_none());
    let path = NormalPath::parse("/b").unwrap();
    let found = router.find(None, &path);
    assert!(found.mount.is_none() && found.exclusion.is_none() && found.route.is_some());
}

#[test]
fn roots_are_opened_with_the_router_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let files = |root: &std::path::Path| {
        route(Action::Files(Files {
            root: root.to_owned(),
            index: vec!["index.html".into()],
            precompressed: false,
            cache_control: None,
        }))
    };
    let site = |root: &std::path::Path| Site {
        hosts: Vec::new(),
        mounts: vec![
            Arc::new(Mount {
                pattern: "/static/*".into(),
                route: files(root),
            }),
            mount("/app/*", "app"),
        ],
        exclusions: vec![exclusion("/app/img/*", None)],
        fallback: Some(files(root)),
    };
    let router = Router::open(&frontend(vec![site(directory.path())])).unwrap();
    for (raw, there) in [
        ("/static/x", true),
        ("/app/x", false),
        ("/app/img/x", true),
        ("/", true),
    ] {
        let path = NormalPath::parse(raw).unwrap();
        assert_eq!(router.find(None, &path).documents.is_some(), there, "{raw}");
    }
    let missing = directory.path().join("missing");
    let errors = Router::open(&frontend(vec![site(&missing)])).unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    for error in errors {
        assert!(error.to_string().contains("missing"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A mount is chosen first, exclusions are asked after that.
    #[test]
    fn exclusions_come_after_mounts(
        mounts in prop::collection::vec(("/[ab/*]{0,5}", 0..3usize), 0..8),
        exclusions in prop::collection::vec(("/[ab/*]{0,5}", prop::option::of(0..3usize)), 0..8),
        raw in "(/[ab]{1,2}){1,3}/?",
    ) {
        const POOLS: [&str; 3] = ["p0", "p1", "p2"];
        let site = Site {
            hosts: Vec::new(),
            mounts: mounts.iter().map(|(p, pool)| mount(p, POOLS[*pool])).collect(),
            exclusions: exclusions.iter().map(|(p, pool)| exclusion(p, pool.map(|p| POOLS[p]))).collect(),
            fallback: Some(fixed(204)),
        };
        let router = Router::new(&frontend(vec![site]));
        let takes = |pattern: &str| Patterns::new([pattern]).matches(raw.as_bytes());
        let mut order: Vec<&(String, usize)> = mounts.iter().collect();
        order.sort_by_key(|(p, _)| std::cmp::Reverse((p.matches('/').count(), p.len())));
        let taken = order.into_iter().find(|(p, _)| takes(p)).map(|(_, pool)| *pool);
        let kept = taken.filter(|taken| {
            !exclusions.iter().any(|(p, pool)| pool.is_none_or(|pool| pool == *taken) && takes(p))
        });
        let expected = kept.map_or("204", |pool| POOLS[pool]);
        prop_assert_eq!(go(&router, "any", &raw), expected);
    }
}

/// Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn how_long_a_lookup_takes() {
    let site = |count: usize, host: usize| {
        let mut mounts: Vec<Arc<Mount>> = (0..count)
            .map(|i| match i % 3 {
                0 => mount(&format!("/app{i}/*"), "a"),
                1 => mount(&format!("/shop/section{i}/*"), "b"),
                _ => mount(&format!("/exact/page{i}.html"), "c"),
            })
            .collect();
        mounts.push(mount("/*.jsp", "jsp"));
        mounts.push(mount("/*", "rest"));
        Site {
            hosts: vec![HostPattern::Exact(format!("www{host}.example.org").into())],
            mounts,
            exclusions: vec![exclusion("/*.css", None), exclusion("/images/*", Some("a"))],
            fallback: Some(fixed(204)),
        }
    };
    let paths = [
        "/",
        "/app0/index.html",
        "/shop/section1/item/4711/details.html",
        "/exact/page2.html",
        "/nothing/of/this/is/mounted/anywhere.png",
        "/app0/view.jsp;jsessionid=0123456789ABCDEF0123456789ABCDEF.node1",
        "/app0//x/../caf%C3%A9",
    ];
    for count in [3, 1000] {
        let router = Router::new(&frontend((0..50).map(|host| site(count, host)).collect()));
        println!("{count} mounts, 50 sites:");
        for raw in paths {
            let rounds = 200_000_u32;
            let start = Instant::now();
            for _ in 0..rounds {
                let path = NormalPath::parse(std::hint::black_box(raw)).unwrap();
                std::hint::black_box(&path);
            }
            let parse = start.elapsed() / rounds;
            let path = NormalPath::parse(raw).unwrap();
            let start = Instant::now();
            for _ in 0..rounds {
                let host = std::hint::black_box(Some("www25.example.org"));
                let found = router.find(host, std::hint::black_box(&path));
                std::hint::black_box(found.route.is_some());
            }
            let find = start.elapsed() / rounds;
            println!(
                "  parse {:>4} ns, find {:>4} ns  {raw}",
                parse.as_nanos(),
                find.as_nanos()
            );
        }
    }
}
