//! Many requests of random sizes around the limit of a packet, and large bodies.

use balancer_tests::http::proc;
use balancer_tests::http::raw::Answer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// As `Tomcat::start` has it.
const SIZE: usize = 8192;

/// Bytes of a request in AJP13, by what Tomcat said of the same one by HTTP.
fn packet_size(all: &BTreeMap<String, Vec<String>>, port: u16) -> usize {
    const CODED: [&str; 14] = [
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "authorization",
        "connection",
        "content-type",
        "content-length",
        "cookie",
        "cookie2",
        "host",
        "pragma",
        "referer",
        "user-agent",
    ];
    let text = |text: &str| text.len() + 3;
    let client = CLIENT.to_string();
    // Head, code, method, port, TLS, count, end.
    let mut size = 4 + 1 + 1 + 2 + 1 + 2 + 1;
    size += text("HTTP/1.1") + text(&one(all, "uri")) + 2 * text(&client);
    size += text(&one(all, "server_name"));
    let mut length = false;
    for header in &all["header"] {
        // As the application writes it.
        let header = header.replace("\\u005c", "\\");
        let (name, value) = header.split_once('=').expect("a header");
        if name == "transfer-encoding" {
            length = true;
            continue;
        }
        length |= name == "content-length";
        let name = if CODED.contains(&name) { 2 } else { text(name) };
        size += name + text(value);
    }
    if !length {
        size += 2 + text("0");
    }
    match one(all, "query").as_str() {
        "null" => {}
        query => size += 1 + text(query),
    }
    // The one of the methods here that has no code.
    if one(all, "method") == "PATCH" {
        size += 1 + text("PATCH");
    }
    size += 1 + text("s0") + 1 + text(SECRET);
    for (name, value) in [
        ("AJP_REMOTE_PORT", port.to_string().as_str()),
        ("AJP_LOCAL_ADDR", "127.0.0.1"),
        ("JK_LB_ACTIVATION", "ACT"),
    ] {
        size += 1 + text(name) + text(value);
    }
    size
}

#[test]
fn random_requests_and_responses_are_those_of_http() {
    let requests = number("BALANCER_AJP_REQUESTS", 1_000);
    let scene = Scene::new(&both());
    let seed: u64 = number("BALANCER_AJP_SEED", rand::rng().random());
    println!("BALANCER_AJP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = scene.client();
    let port = client.socket().local_addr().expect("an address").port();
    let (mut fitting, mut near, mut refused) = (0u32, 0u32, 0u32);
    for round in 0..requests / 2 {
        let method = ["GET", "POST", "PUT", "PATCH", "DELETE"][random.random_range(0..5)];
        let query = match random.random_range(0..3) {
            0 => String::new(),
            _ => format!("?q={}", "y".repeat(random.random_range(0..500))),
        };
        let mut fields: Fields<'_> = (0..random.random_range(0..15))
            .map(|_| {
                let names = [
                    "Accept",
                    "X-One",
                    "X-Two",
                    "Referer",
                    "Cookie",
                    "User-Agent",
                ];
                let length = random.random_range(0..400);
                let value = (0..length)
                    .map(|_| random.random_range('!'..='~'))
                    .collect();
                (names[random.random_range(0..names.len())], value)
            })
            .collect();
        // One field of it in HTTP too, as it would otherwise be there for nobody to compare.
        let mut seen = false;
        fields.retain(|(name, _)| *name != "Cookie" || !std::mem::replace(&mut seen, true));
        let mut body = vec![
            0;
            if method == "GET" {
                0
            } else {
                random.random_range(0..20_000)
            }
        ];
        random.fill(&mut body[..]);
        let chunks: Vec<usize> = match random.random_range(0..3) {
            0 if !body.is_empty() => vec![random.random_range(1..9_000), 8186],
            _ => vec![],
        };
        fields.push(("X-Pad", String::new()));
        let on = |prefix: &str| format!("{prefix}/x{query}");
        let plain = ask(&mut client, (method, &on("/h")), &fields, &body, &chunks);
        let size = packet_size(&said(&plain), port);
        // Half of them around the limit, on both sides of it.
        let wanted = match random.random_bool(0.5) {
            true => SIZE + random.random_range(0..60) - 30,
            false => random.random_range(1..SIZE + 1_000),
        };
        if let Some(pad) = wanted.checked_sub(size) {
            fields.last_mut().expect("the pad").1 = "p".repeat(pad);
        }
        let size = size.max(wanted);
        let http = ask(&mut client, (method, &on("/h")), &fields, &body, &chunks);
        assert_eq!(packet_size(&said(&http), port), size);
        let place = format!("seed {seed}, round {round}: {size} bytes");
        if size > SIZE {
            refused += 1;
            // The body is not read: the connection may end with the answer.
            let mut other = scene.client();
            let digits = |port: u16| port.to_string().len();
            let own = other.socket().local_addr().expect("an address").port();
            let ajp = ask(&mut other, (method, &on("/a")), &fields, &body, &chunks);
            match size + digits(own) - digits(port) > SIZE {
                true => assert_eq!(ajp.status, 431, "{place}"),
                false => assert_eq!(ajp.status, 200, "{place}"),
            }
        } else {
            fitting += 1;
            near += u32::from(size + 30 >= SIZE);
            let ajp = ask(&mut client, (method, &on("/a")), &fields, &body, &chunks);
            assert_eq!(ajp.status, 200, "{place}: {}", http.text());
            assert_eq!(comparable(&ajp), comparable(&http), "{place}");
        }
        // A response of Tomcat's own invention, twice.
        let path = format!("/random?seed={}", random.random::<u32>());
        let http = client.get(&format!("/h{path}"));
        let ajp = client.get(&format!("/a{path}"));
        let place = format!("{place}: {path}");
        assert_eq!(
            (ajp.status, &ajp.body),
            (http.status, &http.body),
            "{place}"
        );
        let headers = |answer: &Answer| {
            let mut headers = answer.headers.clone();
            headers
                .retain(|(name, _)| !matches!(name.as_str(), "date" | "keep-alive" | "connection"));
            headers.sort();
            headers
        };
        assert_eq!(headers(&ajp), headers(&http), "{place}");
    }
    println!("{fitting} fitting requests ({near} just so), {refused} that did not");
    assert!(near > 0 && refused > 0);
    let status = scene.agent.status();
    let backend = scene.agent.backend("ajp", "s0");
    assert_eq!(backend["health"], "up", "{status}");
}

#[test]
fn large_bodies_take_no_memory() {
    let bytes = number("BALANCER_AJP_MIB", 128) << 20;
    let scene = Scene::new(&both());
    let pid = scene.agent.id();
    let mut client = scene.client();
    // Warm: threads, pools, buffers.
    for path in ["/a/x", "/a/source?bytes=1000000"] {
        assert_eq!(client.get(path).status, 200);
    }
    let before = proc::resident(&[pid]);
    let mut most = before;
    let piece: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i * 31 + (i >> 8)) as u8)
        .collect();
    for known in [true, false] {
        client.send(match known {
            true => format!("POST /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n"),
            false => "POST /a/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        });
        for _ in 0..bytes >> 20 {
            if !known {
                client.send(format!("{:x}\r\n", piece.len()));
            }
            client.send(&piece);
            if !known {
                client.send("\r\n");
            }
            most = most.max(proc::resident(&[pid]));
        }
        if !known {
            client.send("0\r\n\r\n");
        }
        assert_eq!(one(&said(&client.answer()), "body"), bytes.to_string());
        let unknown = if known { "" } else { "&unknown=1" };
        client.send(format!(
            "GET /a/source?bytes={bytes}{unknown} HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        let (_, status, headers) = client.head().expect("a response");
        assert_eq!(status, 200);
        let length = headers.iter().find(|(name, _)| name == "content-length");
        assert_eq!(length.is_some(), known, "{headers:?}");
        let mut left = bytes;
        while left > 0 {
            let part = match known {
                true => client.exactly(left.min(1 << 16) as usize, 0),
                false => client.chunk(),
            };
            let part = part.unwrap_or_else(|trouble| panic!("{left} bytes are missing: {trouble}"));
            assert!(!part.is_empty() && part.len() as u64 <= left);
            let at = ((bytes - left) & 0xFFFF) as usize;
            let n = part.len().min((1 << 16) - at);
            for (i, byte) in part[..n].iter().enumerate() {
                let i = (at + i) as u32;
                assert!(
                    *byte == (i.wrapping_mul(31) + (i >> 8)) as u8,
                    "{left} bytes before the end"
                );
            }
            left -= part.len() as u64;
            most = most.max(proc::resident(&[pid]));
        }
        if !known {
            assert_eq!(client.chunk(), Ok(Vec::new()));
            assert_eq!(client.exactly(2, 0).as_deref(), Ok(&b"\r\n"[..]));
        }
    }
    let grown = most - before;
    println!(
        "{} MiB each way, twice; {} KiB more memory at most",
        bytes >> 20,
        grown >> 10
    );
    assert!(grown < 24 << 20, "{grown} bytes more");
    // The connection is as good as before.
    assert_eq!(client.get("/a/x").status, 200);
}
