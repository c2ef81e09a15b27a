//! Takes session ids out of what is logged. Who reads a log must not be able to take over
//! a session; who looks for a fault must still see that two lines are of one session, and
//! where it belongs. So `;jsessionid=A1B2C3D4E5F60718.s2` becomes `;jsessionid=A1B2***.s2`.

use std::borrow::Cow;

use memchr::{memchr2, memrchr3};
use percent_encoding::percent_decode;

use crate::model::Config;
use crate::model::http::Sticky;

/// Names under which applications carry sessions unless told otherwise, in lower case.
const USUAL: [&str; 5] = [
    "jsessionid",
    "phpsessid",
    "asp.net_sessionid",
    "connect.sid",
    "sessionid",
];
/// Stands for what was taken out.
const HIDDEN: &str = "***";
/// Most characters of an id that stay.
const KEPT: usize = 4;
/// How deep an address within an address may be encoded.
const DEPTH: usize = 4;

/// Under which names session ids travel, and what may follow an id.
#[derive(Clone, Debug)]
pub struct Masks {
    /// Of cookies, path parameters and query parameters; lower case.
    names: Vec<Box<[u8]>>,
    /// Routes of backends; sorted. A few strings are found faster so than by a hash.
    routes: Vec<Box<str>>,
}

impl Default for Masks {
    /// Without a configuration: the usual names, and no routes.
    fn default() -> Self {
        Self::of(USUAL, [])
    }
}

impl Masks {
    /// Of a configuration: the usual names, those that its pools name, and their routes.
    pub fn new(config: &Config) -> Self {
        let mut names: Vec<&str> = USUAL.to_vec();
        let mut routes = Vec::new();
        for pool in &config.pools {
            match &pool.http.sticky {
                Some(Sticky::Route(sticky)) => names.extend([&*sticky.cookie, &*sticky.parameter]),
                Some(Sticky::Cookie(sticky)) => names.push(&sticky.name),
                Some(Sticky::Learn(sticky)) => names.push(&sticky.cookie),
                Some(Sticky::Source { .. }) | None => {}
            }
            routes.extend(pool.backends.iter().map(|backend| &*backend.http.route));
        }
        Self::of(names, routes)
    }

    pub(super) fn of<'a>(
        names: impl IntoIterator<Item = &'a str>,
        routes: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let names = names.into_iter().filter(|name| !name.is_empty());
        let mut names: Vec<Box<[u8]>> = names
            .map(|name| name.to_ascii_lowercase().into_bytes().into())
            .collect();
        names.sort_unstable();
        names.dedup();
        let routes = routes.into_iter().filter(|route| !route.is_empty());
        let mut routes: Vec<Box<str>> = routes.map(Into::into).collect();
        routes.sort_unstable();
        routes.dedup();
        Self { names, routes }
    }

    /// A request's target, or an address in a header, without session ids.
    pub(super) fn address<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let bytes = text.as_bytes();
        let mut out = String::new();
        // Up to here `out` has it; from here on names can begin; from here on is unread.
        let (mut copied, mut floor, mut at) = (0, 0, 0);
        while let Some(found) = memchr2(b'=', b'%', &bytes[at..]) {
            let sign = at + found;
            let Some(sign_bytes) = equals_sign(&bytes[sign..]) else {
                at = sign + 1;
                continue;
            };
            let value = sign + sign_bytes;
            let name = last_part(&bytes[floor..sign]);
            (floor, at) = (value, value);
            if !self.is_session(name) {
                continue;
            }
            let in_query = bytes[..sign].contains(&b'?');
            let end = value + value_bytes(&bytes[value..], in_query, sign_bytes > 1);
            if copied == 0 {
                // What is taken out is longer than what is put in, or by few bytes shorter.
                out.reserve(text.len() + HIDDEN.len());
            }
            // Signs are ASCII, so these are borders of characters.
            out.push_str(&text[copied..value]);
            self.hide(&text[value..end], &mut out);
            (copied, floor, at) = (end, end, end);
        }
        if copied == 0 {
            return Cow::Borrowed(text);
        }
        out.push_str(&text[copied..]);
        Cow::Owned(out)
    }

    /// A route that a request asked for. What is no backend's may be a part of a session
    /// id that happens to have a dot.
    pub(super) fn route<'a>(&self, route: &'a str) -> &'a str {
        match self.is_route(route) {
            true => route,
            false => HIDDEN,
        }
    }

    fn is_route(&self, text: &str) -> bool {
        let place = self.routes.binary_search_by(|route| (**route).cmp(text));
        place.is_ok()
    }

    fn is_session(&self, name: &[u8]) -> bool {
        if !name.contains(&b'%') {
            return self.is_name(name);
        }
        // `%6asessionid`, or an address within an address, encoded once or more.
        let mut name = name.to_vec();
        for _ in 0..DEPTH {
            let decoded: Vec<u8> = percent_decode(&name).collect();
            if decoded == name {
                break;
            }
            name = decoded;
        }
        self.is_name(last_part(&name))
    }

    fn is_name(&self, name: &[u8]) -> bool {
        let is = |known: &[u8]| known.eq_ignore_ascii_case(name);
        self.names.iter().any(|known| is(known))
    }

    fn hide(&self, value: &str, out: &mut String) {
        if value.is_empty() {
            return;
        }
        let (id, route) = match value.split_once('.') {
            Some((id, route)) if self.is_route(route) => (id, Some(route)),
            Some((id, _)) => (id, None),
            None => (value, None),
        };
        // A short id would be given away by four characters.
        let kept = id.chars().take_while(char::is_ascii_alphanumeric);
        out.extend(kept.take(KEPT.min(id.len() / 4)));
        out.push_str(HIDDEN);
        if let Some(route) = route {
            out.push('.');
            out.push_str(route);
        }
    }
}

/// Bytes of an equals sign at the beginning: `=`, `%3D`, `%253D` and so on.
fn equals_sign(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'=' => Some(1),
        _ => encoded(text)
            .filter(|(byte, _)| *byte == b'=')
            .map(|(_, bytes)| bytes),
    }
}

/// What a percent sign at the beginning stands for in the end, and its bytes.
fn encoded(text: &[u8]) -> Option<(u8, usize)> {
    let digit = |at: usize| text.get(at).and_then(|b| char::from(*b).to_digit(16));
    if text.first() != Some(&b'%') {
        return None;
    }
    let mut at = 1;
    while text.get(at..at + 2) == Some(b"25") {
        at += 2;
    }
    // A lone `%25` is a percent sign.
    let byte = digit(at)? << 4 | digit(at + 1)?;
    Some((byte as u8, at + 2))
}

/// What follows the last separator.
fn last_part(text: &[u8]) -> &[u8] {
    let one = memrchr3(b';', b'&', b'/', text);
    let two = memrchr3(b'?', b'#', b' ', text);
    match one.max(two) {
        Some(at) => &text[at + 1..],
        None => text,
    }
}

/// How long a value is. In a query it may have slashes. In an address within an address,
/// what ends it may be encoded as well.
fn value_bytes(text: &[u8], in_query: bool, nested: bool) -> usize {
    let ends = |byte| match byte {
        b';' | b'&' | b'#' | b' ' | b'"' => true,
        b'/' | b'?' => !in_query,
        _ => false,
    };
    let end = text.iter().enumerate().position(|(at, byte)| {
        ends(*byte)
            || nested && *byte == b'%' && encoded(&text[at..]).is_some_and(|(byte, _)| ends(byte))
    });
    end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "A1B2C3D4E5F60718293A4B5C6D7E8F90";

    fn masks() -> Masks {
        Masks::of(["jsessionid", "MYSID"], ["s1", "eu.s2"])
    }

    fn check(with: &str, expected: &str) {
        let with = with.replace("ID!", ID);
        assert_eq!(masks().address(&with), expected, "{with}");
    }

    #[test]
    fn ids_are_masked_and_routes_stay() {
        check("/a;jsessionid=ID!.s1", "/a;jsessionid=A1B2***.s1");
        check(
            "/a;jsessionid=ID!.eu.s2?x=1",
            "/a;jsessionid=A1B2***.eu.s2?x=1",
        );
        check("/a;jsessionid=ID!", "/a;jsessionid=A1B2***");
        check("/a;JSessionID=ID!/b;c=d", "/a;JSessionID=A1B2***/b;c=d");
        check("/a?mysid=ID!&b=c", "/a?mysid=A1B2***&b=c");
        check("/a?b=c&MYSID=ID!#f", "/a?b=c&MYSID=A1B2***#f");
        check(
            "http://h/a;jsessionid=ID!.s1?mysid=ID!.s1",
            "http://h/a;jsessionid=A1B2***.s1?mysid=A1B2***.s1",
        );
    }

    #[test]
    fn what_is_no_route_is_part_of_the_id() {
        check("/a;jsessionid=ID!.s9", "/a;jsessionid=A1B2***");
        check("/a;jsessionid=abc.SECRETSECRET", "/a;jsessionid=***");
        check("/a?mysid=s%3AID!.SIGNATURE", "/a?mysid=s***");
        assert_eq!(masks().route("s1"), "s1");
        assert_eq!(masks().route("SECRET"), "***");
    }

    #[test]
    fn short_ids_keep_less() {
        check("/a;jsessionid=ABCDEFGH.s1", "/a;jsessionid=AB***.s1");
        check("/a;jsessionid=ABC.s1", "/a;jsessionid=***.s1");
        check("/a;jsessionid=", "/a;jsessionid=");
    }

    #[test]
    fn slashes_belong_to_a_querys_value() {
        check("/a?mysid=ab/cd+ID!&x", "/a?mysid=ab***&x");
    }

    #[test]
    fn encoding_hides_nothing() {
        check("/a;j%73essionid=ID!", "/a;j%73essionid=A1B2***");
        check("/a;jsessionid%3dID!.s1", "/a;jsessionid%3dA1B2***.s1");
        check(
            "/login?to=%2Fa%3Bjsessionid%3DID!.s1%26x%3D1",
            "/login?to=%2Fa%3Bjsessionid%3DA1B2***.s1%26x%3D1",
        );
        check(
            "/login?to=%252Fa%253Bjsessionid%253DID!",
            "/login?to=%252Fa%253Bjsessionid%253DA1B2***",
        );
        // Not nested: the encoded separator is a part of the id.
        check("/a;jsessionid=ID!%3BMORE", "/a;jsessionid=A1B2***");
    }

    #[test]
    fn other_names_stay() {
        for text in [
            "/",
            "/a?b=c&d=e%3D",
            "/xjsessionid=1234567812345678",
            "/a?jsessionidx=1234567812345678",
            "/a?id=1234567812345678%",
            "%",
            "%2",
            "%25",
            "%252",
            "=",
            "",
        ] {
            assert!(matches!(masks().address(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn names_and_routes_are_the_configurations() {
        let text = r#"
            [[pool]]
            name = "web"
            [[pool.backend]]
            name = "s1"
            address = "10.0.0.1:80"
        "#;
        let mut config = crate::config::parse("test", text).unwrap();
        let pool = std::sync::Arc::make_mut(&mut config.pools[0]);
        let http = std::sync::Arc::make_mut(&mut pool.http);
        http.sticky = Some(Sticky::Learn(crate::model::http::StickyLearn {
            cookie: "token".into(),
            idle: std::time::Duration::from_secs(1),
            force: false,
        }));
        pool.backends[0].http.route = "r1".into();
        let masks = Masks::new(&config);
        let text = format!("/?TOKEN={ID}.r1&phpsessid={ID}");
        assert_eq!(masks.address(&text), "/?TOKEN=A1B2***.r1&phpsessid=A1B2***");
    }

    proptest! {
        #[test]
        fn an_id_is_never_whole(
            before in "(/|[a-z0-9;=&?%./]){0,40}[;&?/]",
            name in "jsessionid|JSESSIONID|JSessionId|mysid|MYSID",
            id in "[A-Za-z0-9]{16,64}",
            after in "((\\.s1)?[;&#][a-z0-9;=&?%./]{0,40})?",
        ) {
            let text = format!("{before}{name}={id}{after}");
            let masked = masks().address(&text).into_owned();
            prop_assert!(!masked.contains(&id[..8]) || before.contains(&id[..8]), "{} {}", text, masked);
        }

        #[test]
        fn any_text_is_taken(text in "\\PC{0,200}") {
            let masked = masks().address(&text).into_owned();
            prop_assert!(masked.len() <= text.len() + 4 * text.matches(['=', '%']).count());
        }
    }
}
