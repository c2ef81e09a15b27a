//! What clients accept: a table.

use super::*;

fn best(values: &[&str], available: &[Coding]) -> Vec<&'static str> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(ACCEPT_ENCODING, value.parse().unwrap());
    }
    Accepted::read(&headers)
        .ranked(available)
        .map(Coding::name)
        .collect()
}

#[test]
fn codings_are_ranked_by_weight_and_size() {
    for (values, expected) in [
        (&[][..], &[][..]),
        (&[""], &[]),
        (&["gzip"], &["gzip"]),
        (&["GZIP"], &["gzip"]),
        (&["x-gzip"], &["gzip"]),
        (&["gzip, deflate, br, zstd"], &["br", "zstd", "gzip"]),
        (&["gzip", "br"], &["br", "gzip"]),
        (&["deflate"], &[]),
        (&["*"], &["br", "zstd", "gzip"]),
        (&["*;q=0"], &[]),
        (&["gzip;q=0"], &[]),
        (&["br;q=0, *"], &["zstd", "gzip"]),
        (&["gzip;q=1.0, br;q=0.9"], &["gzip", "br"]),
        (
            &["gzip;q=0.5, br;q=0.500, zstd;q=0.501"],
            &["zstd", "br", "gzip"],
        ),
        (&["gzip; q = 0.5 , br ;q=1"], &["br", "gzip"]),
        (&["gzip;Q=0.5"], &["gzip"]),
        // None is preferred.
        (&["identity, gzip;q=0.5"], &[]),
        (&["identity;q=0.5, gzip;q=0.5"], &["gzip"]),
        (&["identity;q=0, gzip;q=0.1"], &["gzip"]),
        (&["identity;q=0"], &[]),
        // What can't be read is left out.
        (&["gzip;q=2"], &[]),
        (&["gzip;q=1.001"], &[]),
        (&["gzip;q=0.5555"], &[]),
        (&["gzip;q=x"], &[]),
        (&["gzip;q=-1"], &[]),
        (&["gzip;level=9"], &[]),
        (&["gzip;q=x, br"], &["br"]),
        (&["gzip\u{a0}, br;q=0.1"], &["br"]),
    ] {
        let found = best(values, &Coding::ALL);
        // A field that is not ASCII is no list; the row then has no usable entry.
        let expected = if values.iter().all(|v| v.is_ascii()) {
            expected
        } else {
            &[][..]
        };
        assert_eq!(found, expected, "{values:?}");
    }
    assert_eq!(best(&["gzip, br, zstd"], &[Coding::Gzip]), ["gzip"]);
}

#[test]
fn vary_is_told_once() {
    for (before, after) in [
        (&[][..], &["Accept-Encoding"][..]),
        (&["Cookie"], &["Cookie", "Accept-Encoding"]),
        (&["accept-encoding"], &["accept-encoding"]),
        (&["Cookie, ACCEPT-ENCODING"], &["Cookie, ACCEPT-ENCODING"]),
        (&["*"], &["*"]),
        (
            &["Cookie", "Accept-Encoding"],
            &["Cookie", "Accept-Encoding"],
        ),
        (
            &["Accept-Encoding-2"],
            &["Accept-Encoding-2", "Accept-Encoding"],
        ),
    ] {
        let mut headers = HeaderMap::new();
        for value in before {
            headers.append(VARY, HeaderValue::from_static(value));
        }
        vary(&mut headers);
        let told: Vec<&str> = headers
            .get_all(VARY)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect();
        assert_eq!(told, after);
    }
}
