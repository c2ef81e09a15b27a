//! Hosts, mounts, exclusions, files, rewriting: which of them answers a request, and what
//! the servers get to see.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use balancer_tests::http::raw::Answer;
use balancer_tests::http::web::{
    CHECK, Web, app_address, frontend, frontend_with_sites, pool, write,
};

fn two_pools() -> String {
    let pool = |name: &str, i: usize| {
        format!(
            "[[pool]]\nname = \"{name}\"\n{CHECK}[[pool.backend]]\nname = \"s{i}\"\naddress = \"{}\"\n",
            app_address(i)
        )
    };
    pool("app", 0) + &pool("other", 1)
}

fn root(dir: &Path) -> String {
    write(dir, "root/index.html", "<h1>index</h1>\n");
    write(dir, "root/images/a.png", "png");
    write(dir, "root/style.css", "body { color: black }\n");
    dir.join("root").display().to_string()
}

fn ask(web: &Web, host: &str, path: &str) -> Answer {
    web.client().get_with(path, &[("Host", host)])
}

#[test]
fn the_most_exact_host_answers() {
    let respond = |hosts: &str, body: &str| {
        format!(
            "[[frontend.site]]\n{hosts}\n[[frontend.site.mount]]\npattern = \"/*\"\n\
             respond = {{ body = \"{body}\" }}\n"
        )
    };
    let web = Web::new(1, |_| {
        frontend_with_sites(
            &(respond("hosts = [\"*.example.org\"]", "wild")
                + &respond("hosts = [\"*.deep.example.org\"]", "deep")
                + &respond("hosts = [\"www.example.org\", \"example.org\"]", "exact")
                + &respond("", "default")),
        ) + &pool(1, CHECK)
    });
    for (host, answer) in [
        ("www.example.org", "exact"),
        ("example.org", "exact"),
        ("WWW.EXAMPLE.ORG", "exact"),
        ("www.example.org:8080", "exact"),
        ("www.example.org.", "exact"),
        ("a.example.org", "wild"),
        ("a.b.example.org", "wild"),
        ("a.deep.example.org", "deep"),
        ("deep.example.org", "wild"),
        ("xexample.org", "default"),
        ("127.0.0.1", "default"),
        ("[::1]:80", "default"),
    ] {
        assert_eq!(ask(&web, host, "/").text(), answer, "{host}");
    }
}

#[test]
fn mounts_and_exclusions_are_those_of_mod_jk() {
    let web = Web::new(2, |dir| {
        let root = root(dir);
        frontend_with_sites(&format!(
            "[[frontend.site]]\nroot = \"{root}\"\n\
             [[frontend.site.mount]]\npattern = [\"/app\", \"/app/*\"]\npool = \"app\"\n\
             [[frontend.site.mount]]\npattern = \"/app/other/*\"\npool = \"other\"\n\
             [[frontend.site.mount]]\npattern = \"/*.do\"\npool = \"other\"\n\
             [[frontend.site.mount]]\npattern = \"/v?/x\"\npool = \"app\"\n\
             [[frontend.site.exclude]]\npattern = \"/app/static/*\"\npool = \"app\"\n\
             [[frontend.site.exclude]]\npattern = \"/*.png\"\n"
        )) + &two_pools()
    });
    for (path, server) in [
        ("/app", Some("s0")),
        ("/app/", Some("s0")),
        ("/app/x/y", Some("s0")),
        ("/application", None),
        ("/App", None),
        ("/app/other", Some("s0")),
        ("/app/other/x", Some("s1")),
        ("/x.do", Some("s1")),
        ("/a/b/x.do", Some("s1")),
        ("/x.dot", None),
        ("/v1/x", Some("s0")),
        ("/v12/x", None),
        ("/app/static/x", None),
        ("/app/static", Some("s0")),
        ("/app/other/a.png", None),
        ("/images/a.png", None),
        // One normalised path is matched.
        ("/app/../app/x", Some("s0")),
        ("/x/..//app/x", Some("s0")),
        ("/%61pp/x", Some("s0")),
        ("/app/./static/x", None),
        ("/app/%73tatic/x", None),
        ("/app/x/../static/x", None),
        ("/app;v=1/static;w=2/x", None),
        ("/app//other///x", Some("s1")),
    ] {
        let answer = ask(&web, "a.example", path);
        match server {
            Some(server) => assert_eq!(answer.one("x-server"), Some(server), "{path}: {answer:?}"),
            None => assert_eq!(answer.one("x-server"), None, "{path}: {answer:?}"),
        }
    }
    assert_eq!(ask(&web, "a.example", "/images/a.png").text(), "png");
    assert_eq!(ask(&web, "a.example", "/application").status, 404);
    // What is matched is what is forwarded.
    web.clear();
    ask(&web, "a.example", "/app/a/../%62//c?q=/../x");
    assert_eq!(web.apps[0].only().target, "/app/b/c?q=/../x");
}

#[test]
fn paths_and_fields_are_rewritten() {
    let web = Web::new(2, |_| {
        frontend_with_sites(
            "[[frontend.site]]\n[[frontend.site.mount]]\npattern = [\"/api\", \"/api/*\"]\npool = \"app\"\n\
             [frontend.site.mount.rewrite]\nstrip_prefix = \"/api\"\nadd_prefix = \"/v2\"\nhost = \"inner.example\"\n\
             request_headers = [{ set = \"X-Set\", value = \"1\" }, { add = \"X-Add\", value = \"2\" }, { remove = \"X-Gone\" }]\n\
             response_headers = [{ set = \"Server\", value = \"mine\" }, { remove = \"X-Server\" }]\n",
        ) + &two_pools()
    });
    let answer = web.client().get_with(
        "/api/users?id=1",
        &[("X-Set", "0"), ("X-Add", "0"), ("X-Gone", "0")],
    );
    assert_eq!(answer.one("server"), Some("mine"));
    assert_eq!(answer.one("x-server"), None);
    let seen = web.apps[0].only();
    assert_eq!(seen.target, "/v2/users?id=1");
    assert_eq!(seen.one("host"), Some("inner.example"));
    assert_eq!(seen.all("x-set"), ["1"]);
    assert_eq!(seen.all("x-add"), ["0", "2"]);
    assert_eq!(seen.one("x-gone"), None);
    assert_eq!(seen.one("x-forwarded-host"), Some("test.example"));
    web.clear();
    web.client().get("/api");
    assert!(matches!(web.apps[0].only().target.as_str(), "/v2/" | "/v2"));
}

#[test]
fn redirects_and_fixed_responses() {
    let web = Web::new(1, |_| {
        frontend_with_sites(
            "[[frontend.site]]\npool = \"app\"\n\
             [[frontend.site.mount]]\npattern = \"/old/*\"\nredirect = { location = \"https://{host}/new{path}{query}\", status = 308 }\n\
             [[frontend.site.mount]]\npattern = \"/teapot\"\nrespond = { status = 418, body = \"short\", content_type = \"text/x-tea\" }\n",
        ) + &pool(1, CHECK)
    });
    let answer = ask(&web, "a.example", "/old/x%20y?q=1");
    assert_eq!(answer.status, 308);
    assert_eq!(
        answer.one("location"),
        Some("https://a.example/new/old/x%20y?q=1")
    );
    let answer = ask(&web, "a.example", "/teapot");
    assert_eq!((answer.status, answer.text().as_str()), (418, "short"));
    assert_eq!(answer.one("content-type"), Some("text/x-tea"));
    let head = web.client().request("HEAD", "/teapot", &[], b"");
    assert_eq!((head.status, head.one("content-length")), (418, Some("5")));
    // Whatever a client writes ends up inside one field.
    let answer = ask(&web, "a.example", "/old/%0d%0aset-cookie:%20x");
    assert_eq!(answer.one("set-cookie"), None);
}

#[test]
fn a_maintenance_page_when_nobody_is_left() {
    let page = "[pool.maintenance]\nbody = \"back soon\"\n";
    let mut web = Web::new(1, |_| frontend("") + &pool(1, &format!("{CHECK}{page}")));
    assert_eq!(web.client().get("/").status, 200);
    web.app("s0").kill9();
    web.wait_health("s0", "down");
    let answer = web.client().get("/");
    assert_eq!((answer.status, answer.text().as_str()), (503, "back soon"));
    web.app("s0").restart();
    web.wait_health("s0", "up");
    assert_eq!(web.client().get("/").status, 200);
}

#[test]
fn files_with_conditions_and_ranges() {
    let web = Web::new(1, |dir| {
        let root = root(dir);
        write(
            dir,
            "root/big.txt",
            (0..10_000u32)
                .map(|i| (i % 10) as u8 + b'0')
                .collect::<Vec<_>>(),
        );
        write(dir, "root/pre.js", "var plain = 1;");
        write(dir, "root/pre.js.gz", "not really gzip");
        frontend_with_sites(&format!("[[frontend.site]]\nroot = \"{root}\"\n")) + &pool(1, CHECK)
    });
    let get = |path: &str, fields: &[(&str, &str)]| web.client().get_with(path, fields);
    let index = get("/", &[]);
    assert_eq!(index.text(), "<h1>index</h1>\n");
    assert!(
        index
            .one("content-type")
            .is_some_and(|t| t.starts_with("text/html"))
    );
    let tag = index.one("etag").expect("an ETag").to_owned();
    let modified = index.one("last-modified").expect("a date").to_owned();
    assert_eq!(get("/", &[("If-None-Match", &tag)]).status, 304);
    assert_eq!(
        get("/", &[("If-None-Match", &format!("\"other\", {tag}"))]).status,
        304
    );
    assert_eq!(get("/", &[("If-Modified-Since", &modified)]).status, 304);
    assert_eq!(
        get(
            "/",
            &[("If-None-Match", "\"x\""), ("If-Modified-Since", &modified)]
        )
        .status,
        200
    );
    assert_eq!(get("/", &[("If-Match", "\"x\"")]).status, 412);
    let css = get("/style.css", &[]);
    assert!(
        css.one("content-type")
            .is_some_and(|t| t.starts_with("text/css"))
    );

    let range = |value: &str| get("/big.txt", &[("Range", value)]);
    let part = range("bytes=10-19");
    assert_eq!((part.status, part.text().as_str()), (206, "0123456789"));
    assert_eq!(part.one("content-range"), Some("bytes 10-19/10000"));
    assert_eq!(range("bytes=-5").text(), "56789");
    assert_eq!(range("bytes=9995-").text(), "56789");
    assert_eq!(range("bytes=9999-20000").text(), "9");
    let beyond = range("bytes=10000-");
    assert_eq!(
        (beyond.status, beyond.one("content-range")),
        (416, Some("bytes */10000"))
    );
    assert_eq!(range("lines=1-2").status, 200);
    assert_eq!(range("bytes=5-2").body.len(), 10_000);
    let stale = get(
        "/big.txt",
        &[("Range", "bytes=0-1"), ("If-Range", "\"old\"")],
    );
    assert_eq!((stale.status, stale.body.len()), (200, 10_000));
    let head = web.client().request("HEAD", "/big.txt", &[], b"");
    assert_eq!(
        (head.status, head.one("content-length")),
        (200, Some("10000"))
    );
    assert_eq!(
        web.client().request("POST", "/big.txt", &[], b"x").status,
        405
    );

    let plain = get("/pre.js", &[]);
    assert_eq!(
        (plain.one("content-encoding"), plain.text().as_str()),
        (None, "var plain = 1;")
    );
    let packed = get("/pre.js", &[("Accept-Encoding", "br, gzip")]);
    assert_eq!(packed.one("content-encoding"), Some("gzip"));
    assert_eq!(packed.text(), "not really gzip");
    assert!(
        packed
            .all("vary")
            .join(",")
            .to_ascii_lowercase()
            .contains("accept-encoding")
    );
    assert_eq!(
        get("/pre.js", &[("Accept-Encoding", "gzip;q=0")]).one("content-encoding"),
        None
    );
}

#[test]
fn nothing_outside_the_root_is_served() {
    let web = Web::new(1, |dir| {
        let root = root(dir);
        write(dir, "secret.txt", "secret");
        write(dir, "outside/secret.txt", "secret");
        fs::create_dir_all(dir.join("root/dir")).expect("a directory");
        symlink(dir.join("secret.txt"), dir.join("root/link.txt")).expect("a link");
        symlink("../secret.txt", dir.join("root/relative.txt")).expect("a link");
        symlink(dir.join("outside"), dir.join("root/way")).expect("a link");
        symlink("style.css", dir.join("root/inside.css")).expect("a link");
        symlink("loop", dir.join("root/loop")).expect("a link");
        let made = std::process::Command::new("mkfifo")
            .arg(dir.join("root/pipe"))
            .status();
        assert!(made.is_ok_and(|status| status.success()));
        frontend_with_sites(&format!("[[frontend.site]]\nroot = \"{root}\"\n")) + &pool(1, CHECK)
    });
    for path in [
        "/link.txt",
        "/relative.txt",
        "/way/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/dir/..%2f..%2fsecret.txt",
        "/dir/%2e%2e%2f%2e%2e%2fsecret.txt",
        "/..\\secret.txt",
        "/%5c..%5csecret.txt",
        "/dir/..;/..;/secret.txt",
        "/style.css%00.txt",
        "/loop",
        "/pipe",
        "//etc/passwd",
        "/etc/passwd",
        "/dir",
        "/dir/",
    ] {
        let answer = web.client().get(path);
        assert!(!answer.text().contains("secret"), "{path}: {answer:?}");
        assert!((300..500).contains(&answer.status), "{path}: {answer:?}");
    }
    // Links inside are files like others, or are not followed at all.
    assert!(matches!(
        web.client().get("/inside.css").status,
        200 | 403 | 404
    ));
    assert_eq!(web.client().get("/style.css").status, 200);
}

#[test]
fn texts_are_compressed_for_those_who_want_it() {
    let web = Web::new(1, |_| {
        frontend_with_sites(
            "[[frontend.site]]\n[[frontend.site.mount]]\npattern = \"/*\"\npool = \"app\"\ncompress = true\n",
        ) + &pool(1, CHECK)
    });
    let url = "http://127.0.0.1:8080/text/100000";
    let plain = web.curl(&[url]);
    assert_eq!((plain.status, plain.body.len()), (200, 100_000));
    for coding in ["gzip", "br"] {
        let field = format!("Accept-Encoding: {coding}");
        let raw = web
            .client()
            .get_with("/text/100000", &[("Accept-Encoding", coding)]);
        assert_eq!(raw.one("content-encoding"), Some(coding));
        assert!(raw.body.len() < 20_000, "{}", raw.body.len());
        assert!(
            raw.all("vary")
                .join(",")
                .to_ascii_lowercase()
                .contains("accept-encoding")
        );
        // curl unpacks it.
        let unpacked = web.curl(&["--compressed", "-H", &field, url]);
        assert_eq!(unpacked.body, plain.body, "{coding}");
    }
    let small = web
        .client()
        .get_with("/text/20", &[("Accept-Encoding", "gzip")]);
    assert_eq!(small.one("content-encoding"), None);
    let binary = web
        .client()
        .get_with("/bytes/100000", &[("Accept-Encoding", "gzip")]);
    assert_eq!(
        (binary.one("content-encoding"), binary.body.len()),
        (None, 100_000)
    );
    let head = web
        .client()
        .request("HEAD", "/text/100000", &[("Accept-Encoding", "gzip")], b"");
    assert_eq!(head.status, 200);
}
